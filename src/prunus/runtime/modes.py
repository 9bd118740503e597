"""Training and evaluation mode of every module, kept and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from prunus.runtime.snapshot import state_kept


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
