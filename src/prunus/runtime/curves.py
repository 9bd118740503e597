"""Numbers that change along a run, such as the loss of every epoch, told to whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, float, int], None]
"""Takes the curve's name, a value, and where along the curve it lies."""
_LISTENERS: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Within the context, and in this thread alone, the listener is told every number."""
    token = _LISTENERS.set((*_LISTENERS.get(), listener))
    try:
        yield
    finally:
        _LISTENERS.reset(token)


def point(curve: str, value: float, at: int) -> None:
    """Tell a number of a curve to those that listen."""
    for listener in _LISTENERS.get():
        listener(curve, value, at)
