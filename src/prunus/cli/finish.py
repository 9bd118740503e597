"""What is shown and written when a run is over."""

from __future__ import annotations

from rich.text import Text

from prunus.cli.terminal import command, console, say, show
from prunus.data.datasets import DataSource, first_of
from prunus.formats.exports import Choice, add_exports
from prunus.formats.registry import Exportable
from prunus.pipeline.compress import Compression
from prunus.reports.tables import result_tables

COMPARED = 64
"""Validation examples that statistical comparisons are made on."""


def finish(done: Compression, data: DataSource, exports: Choice, *, origin: str, data_spec: str) -> None:
    """Write what else is asked for, show proof and tables; what could not be written is refused at the very end.

    Raises:
        PruneError: the first refusal of an exporter that was asked for; the result is saved.
    """
    failed = None
    if done.saved is not None:
        done.saved.add_summary({**done.summary, "command": command.get()})
        masked = done.result.masked
        examples = first_of(data.validation, COMPARED, done.model)
        subject = Exportable(
            done.model,
            data.example_inputs,
            done.result.plan,
            done.masks,
            () if masked is None else tuple(masked.inputs),
            batch=examples,
            origin=origin,
            data=data_spec,
        )
        failed = add_exports(done.saved, subject, exports, say)
    say(done.result.verification.explain())
    for table in result_tables(done.summary):
        show(table)
    for warning in done.comparison.warnings:
        console.print(Text.assemble(("warning", "yellow"), f": {warning}"))
    if done.directory is not None:
        say(f"written to {done.directory}; prunus report {done.directory} makes a page of it")
    if failed is not None:
        raise failed
