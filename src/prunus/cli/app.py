"""The command line. Only the command that is called is imported: help and version need no torch."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from rich.text import Text

from prunus.cli.terminal import command, errors, manner, refused, spoken
from prunus.errors import PruneError
from prunus.runtime.stopping import stoppable

COMMANDS: dict[str, tuple[str, str]] = {
    "analyze": ("analyze:analyze", "Say what may be removed from a model, what is locked, and why."),
    "compress": (
        "compress:compress_command",
        "Compress a trained model, recover its accuracy, prove, measure and save it.",
    ),
    "plan": (
        "plan:plan_command",
        "Say what compress would remove, what that costs and about how long it takes; takes the same options.",
    ),
    "evaluate": ("evaluate:evaluate_command", "Accuracy and loss of a model or an artifact on the test split."),
    "export": (
        "export:export",
        "Write a model or an artifact as ONNX, as an exported program or in another form, with a free batch size.",
    ),
    "benchmark": (
        "benchmark:benchmark_command",
        "Time two models side by side in interleaved repeats, and say how large they are.",
    ),
    "trim": (
        "trim:trim_command",
        "Cut a language model's vocabulary, and its tokenizer, to what texts use.",
    ),
    "report": (
        "report:report_command",
        "Write the report of a run: one HTML file that needs no network, from the run's folder alone.",
    ),
    "doctor": (
        "doctor:doctor",
        "Say what is installed, whether torch and torchvision fit, and what this machine is good for.",
    ),
    "demo": (
        "demo:demo",
        "Train LeNet-5 on real digits, compress it with Dirichlet pruning, show and save the result.",
    ),
}
"""Command -> where it is, and the first line of its documentation."""
COMPLETED = "_TYPER_COMPLETE_ARGS"
"""Where the shell's completion says what is typed so far."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: typed errors end with status 2 and one paragraph on standard error."""
    try:
        words = list(sys.argv[1:] if arguments is None else arguments)
        command.set(shlex.join(["prunus", *words]))
        if words and words[0] in ("compress", "plan", "demo"):
            words[1:] = _translated(words[0], words[1:])
        with stoppable(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the smaller network is slower", RuntimeWarning)  # it is in the table
            warnings.filterwarnings("default", ".*goes with the next release", DeprecationWarning)  # hidden by Python
            application(_named(words))(args=words, prog_name="prunus")
    except PruneError as refusal:
        if manner.get().json:
            print(refused(refusal))
        errors.print(Text.assemble((type(refusal).__name__, "red"), f": {refusal}"))
        sys.exit(2)


def application(chosen: str | None) -> typer.Typer:
    """The commands: the chosen one as it is, the others by name and help alone."""
    app = typer.Typer(name="prunus", no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(root)
    for name, (place, help) in COMMANDS.items():
        app.command(name=name, help=help)(spoken(_found(place)) if name == chosen else _unread)
    return app


def shown(version: bool) -> None:
    """Show the version, where it is asked for."""
    if version:
        from prunus import __version__

        print(f"prunus {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=shown, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make trained PyTorch networks physically smaller by learning what to keep."""


def _found(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"prunus.cli.{module}"), name)


def _unread() -> None:
    """A command that was not called."""


def _named(words: Sequence[str]) -> str | None:
    """The command that is called, or completed."""
    typed = shlex.split(os.environ[COMPLETED])[1:] if COMPLETED in os.environ else words
    return next((word for word in typed if not word.startswith("-")), None)


def _translated(name: str, words: list[str]) -> list[str]:
    """The words behind a command as they are written now, with a line about those that were written otherwise."""
    from prunus.cli.former import FORMER, OF_DEMO, translated

    def told(text: str) -> None:
        errors.print(text, highlight=False, markup=False)

    return translated(words, told, {"compress": FORMER, "plan": FORMER, "demo": OF_DEMO}[name])
