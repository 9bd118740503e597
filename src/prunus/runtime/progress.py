"""Progress with rate and remaining time: a bar on a terminal, a line every half a minute elsewhere; on rank 0 alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prunus.runtime.processes import rank

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task, TaskID
    from rich.text import Text


Say = Callable[[str], None]
"""What takes a line of progress."""
EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


class Bar:
    """One running task that nobody watches."""

    def advance(self, steps: int = 1) -> None:
        """Count steps done."""

    def skip(self, steps: int) -> None:
        """Count steps that were done before, in no time."""

    def describe(self, text: str) -> None:
        """Change the text before the bar."""


class _OnTerminal(Bar):
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1) -> None:
        self._progress.advance(self._task, steps)

    def skip(self, steps: int) -> None:
        self._progress.reset(self._task, completed=steps)

    def describe(self, text: str) -> None:
        self._progress.update(self._task, description=text)


class _InLines(Bar):
    """A line on standard error every `EVERY` seconds: nothing of what ends sooner."""

    def __init__(self, text: str, total: int) -> None:
        self._text, self._total, self._done, self._before = text, total, 0, 0
        self._began = self._told = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        now = time.monotonic()
        if now - self._told < EVERY:
            return
        self._told, rate = now, (self._done - self._before) / (now - self._began)
        left = f", about {spoken((self._total - self._done) / rate)} left" if rate and self._total else ""
        of = f" of {self._total:,} ({self._done / self._total:.0%})" if self._total else ""
        print(f"{self._text}: {self._done:,}{of}, {rate:.3g}/s{left}", file=sys.stderr, flush=True)

    def skip(self, steps: int) -> None:
        self._done += steps
        self._before += steps

    def describe(self, text: str) -> None:
        self._text = text


@contextmanager
def progress_bar(text: str, total: int, wanted: bool = True) -> Iterator[Bar]:
    """Progress over `total` steps if wanted, on rank 0."""
    if not wanted or rank() != 0:
        yield Bar()
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _InLines(text, total)
        return
    with _display(console) as progress:
        yield _OnTerminal(progress, progress.add_task(text, total=total))


def spoken(seconds: float) -> str:
    """A time in the unit that people would say it in."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 2 else f"{seconds:.1f} seconds"


def _display(console: Console) -> Progress:
    """Description, bar, steps done, steps per second, remaining time."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.1f}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
