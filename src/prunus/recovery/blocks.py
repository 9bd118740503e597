"""Distillation block by block: what each block of the smaller network puts out is held against the dense one's.

Blocks are found, not named: modules with parts, which both networks have under one name and which answer one call with
tensors of one shape. Channels inside of residual blocks may be gone then; where the stream itself is narrower, or the
network was rewritten, there is no such block and nothing is added. (Feature distillation: Romero et al. 2015, "FitNets:
Hints for Thin Deep Nets", without their adapter, since shapes agree.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunus.runtime.arguments import tensors_in
from prunus.runtime.modes import eval_mode


class BlockOutputs:
    """Catches what the named modules of a network put out within its context, and nothing outside of it."""

    def __init__(self, model: nn.Module | None, names: list[str]) -> None:
        self.found: dict[str, list[Tensor]] = {}
        self.watching = False
        self.hooks = [
            model.get_submodule(name).register_forward_hook(self._keeper(name)) for name in names if model is not None
        ]

    def __enter__(self) -> BlockOutputs:
        self.found, self.watching = {}, True
        return self

    def __exit__(self, *_: object) -> None:
        self.watching = False

    def taken(self) -> dict[str, list[Tensor]]:
        """The first tensor of each output, in order; they are forgotten."""
        found, self.found = self.found, {}
        return found

    def remove(self) -> None:
        """Catch no more."""
        for hook in self.hooks:
            hook.remove()

    def _keeper(self, name: str) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            if self.watching:
                self.found.setdefault(name, []).extend(tensors_in(output)[:1])

        return keep


def common_blocks(student: nn.Module, teacher: nn.Module, run: Callable[[nn.Module], Any]) -> list[str]:
    """Names of the blocks that can be compared, in the order in which they answer.

    Args:
        student: the smaller network.
        teacher: the dense one.
        run: calls a network on a few examples; both on the same.
    """
    theirs = {name for name, module in teacher.named_modules() if name and _has_parts(module)}
    names = [name for name, module in student.named_modules() if name in theirs and _has_parts(module)]
    ours, goal = (_outputs(model, names, run) for model in (student, teacher))
    blocks, seen = list[str](), set[int]()
    for name, tensors in ours.items():
        alike = len(tensors) == len(goal.get(name, [])) == 1 and tensors[0].shape == goal[name][0].shape
        # The last block of a stage and the stage put out the same tensor.
        if alike and tensors[0].is_floating_point() and tensors[0].dim() > 1 and id(tensors[0]) not in seen:
            seen.add(id(tensors[0]))
            blocks.append(name)
    return blocks


def block_distance(ours: dict[str, list[Tensor]], goal: dict[str, list[Tensor]]) -> Tensor:
    """Squared distance from the teacher's outputs in units of their variance, the mean over elements and blocks.

    Args:
        ours: outputs of one call, by block; at least one.
        goal: the teacher's for the same inputs, without gradients.

    Returns:
        A scalar, fp32.
    """
    parts = []
    for name, outputs in ours.items():
        for output, taught in zip(outputs, goal[name], strict=True):
            wanted = taught.float()
            around, size = wanted.var(), wanted.square().mean()
            # What is constant is measured against its size; zeros as they are.
            spread = torch.where(around > 0, around, torch.where(size > 0, size, 1.0))
            parts.append((output.float() - wanted).square().mean() / spread)
    return torch.stack(parts).mean()


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _outputs(model: nn.Module, names: list[str], run: Callable[[nn.Module], Any]) -> dict[str, list[Tensor]]:
    caught = BlockOutputs(model, names)
    try:
        with eval_mode(model), torch.no_grad(), caught:
            run(model)
        return caught.taken()
    finally:
        caught.remove()
