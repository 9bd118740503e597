"""What is written on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

console = Console()


def say(text: str) -> None:
    """A line as it is."""
    console.print(text, highlight=False, markup=False)


def show(table: Table) -> None:
    """A table."""
    console.print(table)
