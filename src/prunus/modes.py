"""Training and evaluation mode of every module, kept and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
    """Eval mode within the context; every module's own mode is put back."""
    with modes_kept(model):
        model.eval()
        yield
