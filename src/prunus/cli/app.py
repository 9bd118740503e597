"""The command line: analyze, compress, evaluate, export, report, demo."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from prunus.cli.analyze import analyze
from prunus.cli.compress import compress_command
from prunus.cli.demo import demo
from prunus.cli.evaluate import evaluate_command
from prunus.cli.export import export
from prunus.cli.former import FORMER, OF_DEMO, translated
from prunus.cli.report import report_command
from prunus.cli.terminal import command
from prunus.errors import PruneError

app = typer.Typer(
    name="prunus",
    help="Make trained PyTorch networks physically smaller by learning what to keep.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(analyze)
app.command(name="compress")(compress_command)
app.command(name="evaluate")(evaluate_command)
app.command()(export)
app.command(name="report")(report_command)
app.command()(demo)


FORMERLY = {"compress": FORMER, "demo": OF_DEMO}
"""Options of earlier releases, by command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: typed errors end with status 2 and one paragraph on standard error."""
    run: Callable[..., Any] = app
    error = Console(stderr=True)
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        command.set(shlex.join(["prunus", *words]))
        table = FORMERLY.get(words[0]) if words else None
        if table is not None:
            words[1:] = translated(words[1:], lambda text: error.print(text, highlight=False, markup=False), table)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the smaller network is slower", RuntimeWarning)  # it is in the table
            warnings.filterwarnings("default", ".*goes with the next release", DeprecationWarning)  # hidden by Python
            run(args=words)
    except PruneError as refusal:
        error.print(Text.assemble((type(refusal).__name__, "red"), f": {refusal}"))
        sys.exit(2)
