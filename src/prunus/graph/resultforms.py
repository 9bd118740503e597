"""How many results each module of a model returns, seen in one call of the model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph.numberless import called
from prunus.graph.units.removal import NOT_A_TENSOR
from prunus.runtime.arguments import as_arguments
from prunus.runtime.entry import one_at_a_time
from prunus.runtime.modes import eval_mode


def results_of(model: nn.Module, example_inputs: Any, paths: Collection[str]) -> dict[str, int]:
    """Module -> 0 where it returns a tensor, n for a tuple of n that begins with one, else -1.

    Args:
        model: the model; called once in eval mode, without gradients.
        example_inputs: as for `trace`.
        paths: the modules.
    """
    found: dict[str, int] = {}
    args, kwargs = as_arguments(example_inputs, model)
    with one_at_a_time(), torch.no_grad(), eval_mode(model), ExitStack() as hooks:
        for path in paths:
            hooks.enter_context(model.get_submodule(path).register_forward_hook(_noting(found, path)))
        called(model, args, kwargs)
    return found


def _noting(found: dict[str, int], path: str) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            found[path] = 0
        else:
            begins = type(output) is tuple and output and isinstance(output[0], Tensor)
            found[path] = len(output) if begins else NOT_A_TENSOR

    return hook
