"""`prunus report`: a run as one page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.terminal import say
from prunus.reports.html import report


def report_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder that compress or demo wrote")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="HTML file to write; by default RUN/report.html")
    ] = None,
) -> dict[str, Any]:
    """Write the report of a run: one HTML file that needs no network, from the run's folder alone."""
    path = report(run, out)
    say(f"written to {path}")
    return {"path": str(path)}
