"""What is shown when a run is over."""

from __future__ import annotations

from rich.text import Text

from prunus.cli.terminal import errors, say, show
from prunus.pipeline.compress import Compression
from prunus.reports.tables import result_tables


def told(done: Compression) -> None:
    """Show proof, tables, warnings and place of a run."""
    say(done.result.verification.explain())
    for table in result_tables(done.summary):
        show(table)
    for warning in done.comparison.warnings:
        errors.print(Text.assemble(("warning", "yellow"), f": {warning}"))
    if done.directory is not None:
        say(f"written to {done.directory}; prunus report {done.directory} makes a page of it")
