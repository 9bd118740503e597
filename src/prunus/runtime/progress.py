"""Progress bars with rate and remaining time; silent where there is no terminal or on other ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prunus.runtime.processes import rank

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task
    from rich.text import Text


Say = Callable[[str], None]
"""What takes a line of progress."""


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


@contextmanager
def progress_bar(text: str, total: int, wanted: bool = True) -> Iterator[Bar]:
    """A bar over `total` steps if wanted, on a terminal, and on rank 0."""
    if not wanted or rank() != 0:
        yield Bar(None, 0)
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bar(None, 0)
        return
    with _display(console) as progress:
        yield Bar(progress, progress.add_task(text, total=total))


def _display(console: Console) -> Progress:
    """Description, bar, steps done, steps per second, remaining time."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.1f}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
