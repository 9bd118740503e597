"""Training and evaluation mode of every module, kept and put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from prunus.runtime.snapshot import state_kept

NORMS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.ops.aten.batch_norm.default: (
        "input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled",
    ),
}  # fmt: skip
"""Functions that normalise by batch, in modules and in captured graphs, and what they call their arguments."""


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """After the context every module is in the mode it was in before, whatever happened within.

    A module that writes its mode elsewhere than in its flag (a rewritten graph) has a method `write_mode_`.
    """
    flags = {m: m.training for m in model.modules()}
    try:
        yield
    finally:
        for module, flag in flags.items():
            write = getattr(module, "write_mode_", None)
            if write is not None:
                write(flag)
            module.training = flag


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within the context, without a cache of keys and values; all that changes meanwhile is put back."""
    with modes_kept(model), without_cache(model):
        model.eval()
        with state_kept(model):
            yield


def hold_statistics_(model: nn.Module) -> None:
    """Put every normalisation with running statistics into eval mode, and nothing else."""
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.eval()
        write = getattr(module, "write_mode_", None)
        if write is not None:
            write(False, norms_only=True)


class _SingleValues(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        names = NORMS.get(func)
        if names is None:
            return func(*args, **kwargs)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        x = given["input"]
        if given.get("training") and given.get("running_mean") is not None and x.numel() == x.shape[1]:
            given["training"] = False
        return func(**given)


def single_values() -> AbstractContextManager[Any]:
    """A context in which batch norms that train, but see one value of each channel, go by their running statistics.

    One value has no variance: a last batch of one example would be refused, or leave NaN in the statistics.
    """
    return _SingleValues()


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Language models of transformers return their keys and values only if asked to: they are no outputs within."""
    found = {id(c): c for c in (getattr(m, "config", None) for m in model.modules()) if c is not None}
    asked = [c for c in found.values() if getattr(c, "use_cache", None) is True]
    for config in asked:
        config.use_cache = False
    try:
        yield
    finally:
        for config in asked:
            config.use_cache = True
