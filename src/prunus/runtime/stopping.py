"""SIGINT and SIGTERM: the step that runs is finished and saved before all ends; a second one doesn't wait."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(SystemExit):
    """SIGTERM, as the status that shells give it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class _Asked:
    """What the process was asked, and whether a step is under way that should be finished first."""

    number: int = 0
    stepping: bool = False


_asked = _Asked()


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the context both signals end the work at the end of the step; in the main thread, which alone gets them.

    Raises:
        KeyboardInterrupt: SIGINT came.
        Terminated: SIGTERM came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {number: signal.signal(number, _handle) for number in SIGNALS}
    _asked.number, _asked.stepping = 0, False
    try:
        yield
        check()
    finally:
        _asked.number, _asked.stepping = 0, False
        for number, handler in before.items():
            signal.signal(number, handler)


def step_begins() -> None:
    """From now on a signal waits until `check`."""
    _asked.stepping = True


def steps_over() -> None:
    """From now on a signal ends the work at once again, one that came meanwhile included."""
    _asked.stepping = False
    check()


def steps_end() -> None:
    """The same after an error, which goes first."""
    _asked.stepping = False


def asked() -> bool:
    """Whether a signal waits."""
    return _asked.number != 0


def check() -> None:
    """End the work if a signal waits, once what is done is saved."""
    if _asked.number:
        number, _asked.number, _asked.stepping = _asked.number, 0, False
        raise _error(number)


def _handle(number: int, _: FrameType | None) -> None:
    if not _asked.stepping or _asked.number:
        _asked.number = 0
        raise _error(number)
    _asked.number = number
    print("finishing this step, then saving; once more ends it at once", file=sys.stderr, flush=True)


def _error(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated()
