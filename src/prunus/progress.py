"""Progress bars with rate and remaining time; silent where there is no terminal or on other ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Bar:
    """One running task, or nothing."""

    def __init__(self, progress: Progress | None, task: int) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1) -> None:
        """Count steps done."""
        if self._progress is not None:
            self._progress.advance(self._task, steps)  # type: ignore[arg-type]

    def describe(self, text: str) -> None:
        """Change the text before the bar."""
        if self._progress is not None:
            self._progress.update(self._task, description=text)  # type: ignore[arg-type]


class RateColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        """The rate of one task."""
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")


@contextmanager
def progress_bar(text: str, total: int, wanted: bool = True) -> Iterator[Bar]:
    """A bar over `total` steps if wanted, on a terminal, and on rank 0."""
    console = Console(stderr=True)
    first = not (torch.distributed.is_available() and torch.distributed.is_initialized()) or (
        torch.distributed.get_rank() == 0
    )
    if not (wanted and first and console.is_terminal):
        yield Bar(None, 0)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(progress, progress.add_task(text, total=total))
