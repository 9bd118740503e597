"""What is written on the terminal."""

from __future__ import annotations

from contextvars import ContextVar

from rich.console import Console
from rich.table import Table

console = Console()
command: ContextVar[str] = ContextVar("command", default="")
"""What was typed; \"\" where a command is called as a function."""


def say(text: str) -> None:
    """A line as it is."""
    console.print(text, highlight=False, markup=False)


def show(table: Table) -> None:
    """A table."""
    console.print(table)
