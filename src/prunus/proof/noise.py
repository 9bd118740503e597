"""Why a network can't be held against anything: it draws noise, or makes undefined numbers. The module is named."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus.errors import SurgeryError, first_line
from prunus.runtime.arguments import as_arguments
from prunus.runtime.modes import eval_mode

Call = tuple[str, list[Tensor], list[Tensor]]


def refuse_noise(model: nn.Module, inputs: Any) -> SurgeryError:
    """The refusal of a model whose outputs differ between two runs on the same inputs."""
    first, second = _calls(model, inputs), _calls(model, inputs)
    where = next(
        (name for (name, a, b), (_, c, d) in zip(first, second, strict=False) if _equal(a, c) and not _equal(b, d)),
        None,
    )
    at = "its outputs" if where is None else f"module {where!r}" if where else "the model's own forward"
    return SurgeryError(
        f"model {type(model).__name__}",
        f"outputs differ between two runs on the same input in eval mode; dropout or noise in forward: {at} changes "
        "though what it is given does not",
        "make it depend on self.training (F.dropout(x, p, self.training)), then prune; everything was rolled back",
    )


def refuse_undefined(model: nn.Module, inputs: Any, output: str) -> SurgeryError:
    """The refusal of a model whose own outputs hold NaN."""
    where = next(
        (name for name, given, made in _calls(model, inputs) if not _undefined(given) and _undefined(made)), None
    )
    at = "" if where is None else f"; they begin in {f'module {where!r}' if where else 'its own forward'}"
    return SurgeryError(
        f"model {type(model).__name__}",
        f"{output} of the dense model holds NaN before anything is removed{at}",
        "mend the weights there (a diverged training, a running variance of NaN); nothing can be proven on NaN",
    )


def _calls(model: nn.Module, inputs: Any) -> list[Call]:
    """Name, inputs and outputs of every module call, in the order in which the calls end."""
    found: list[Call] = []

    def hook(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            found.append((name, _copied((args, kwargs)), _copied(output)))

        return note

    args, kwargs = as_arguments(inputs, model)
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_hook(hook(name), with_kwargs=True))
        try:
            with eval_mode(model), torch.no_grad():
                model(*args, **kwargs)
        except Exception as error:
            found.append((first_line(error), [], []))
    return found


def _copied(value: Any) -> list[Tensor]:
    return [t.detach().clone() for t in tree_leaves(value) if isinstance(t, Tensor)]


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.allclose(x.double(), y.double(), 1e-5, 1e-8, equal_nan=True)
        for x, y in zip(a, b, strict=True)
        if not x.is_complex()
    )


def _undefined(tensors: list[Tensor]) -> bool:
    return any(bool(t.isnan().any()) for t in tensors if t.is_floating_point())
