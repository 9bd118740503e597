"""Changes to modules and configurations, each with what undoes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

Steps = list[Callable[[], None]]
"""What undoes changes, in the order in which they were made."""


def set_child_(owner: nn.Module, name: str, new: nn.Module) -> Steps:
    """Put a module in another's place, under the same name."""
    old = owner._modules[name]
    owner._modules[name] = new

    def undo() -> None:
        owner._modules[name] = old

    return [undo]


def set_attribute_(holder: Any, name: str, value: Any) -> Steps:
    """Give an attribute that is there another value."""
    old = getattr(holder, name)
    setattr(holder, name, value)
    return [lambda: setattr(holder, name, old)]
