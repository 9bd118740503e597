"""What is written on the terminal: lines and tables, or one JSON document, or nothing."""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from prunus.errors import PruneError


@dataclass(frozen=True)
class Manner:
    """How a command speaks: in JSON on the standard output, everything else on the standard error; or not at all."""

    json: bool = False
    quiet: bool = False


console, errors = Console(), Console(stderr=True)
command: ContextVar[str] = ContextVar("command", default="")
"""What was typed; \"\" where a command is called as a function."""
manner: ContextVar[Manner] = ContextVar("manner", default=Manner())  # noqa: B039 - frozen

Json = Annotated[bool, typer.Option("--json", help="one JSON document on the standard output, all else on the other")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no word but refusals and warnings")]


def say(text: str) -> None:
    """A line as it is."""
    if not manner.get().quiet:
        _place().print(text, highlight=False, markup=False)


def show(table: Table) -> None:
    """A table."""
    if not manner.get().quiet:
        _place().print(table)


def _place() -> Console:
    return errors if manner.get().json else console


def spoken(function: Callable[..., Mapping[str, Any] | None]) -> Callable[..., None]:
    """A command with `--json` and `--quiet`; what it returns is the document."""
    # Not `get_type_hints`: of a default None Python 3.10 makes an Optional around typer's options.
    signature, hints = inspect.signature(function), inspect.get_annotations(function, eval_str=True)
    hints |= {"as_json": Json, "quiet": Quiet, "return": None}

    @functools.wraps(function)
    def called(*, as_json: bool = False, quiet: bool = False, **given: Any) -> None:
        manner.set(Manner(as_json, quiet))
        found = function(**given)
        if as_json:
            print(document(found or {}))

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=hints[name])
        for name in ("as_json", "quiet")
    ]
    own = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]
    called.__signature__ = signature.replace(parameters=[*own, *added], return_annotation=None)  # type: ignore[attr-defined]
    called.__annotations__ = hints
    del called.__wrapped__  # typer would read its signature
    return called


def document(found: Mapping[str, Any]) -> str:
    """Plain data as JSON; what is no number is null."""
    return json.dumps(_strict(found), indent=1, default=str)


def refused(refusal: PruneError) -> str:
    """A refusal as JSON."""
    kind = type(refusal).__name__
    return document({"error": {"kind": kind, "where": refusal.where, "what": refusal.what, "fix": refusal.fix}})


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _strict(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
