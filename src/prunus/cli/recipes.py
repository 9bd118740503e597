"""Commands that take a whole recipe: each of its parts is an option."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prunus.cli import options
from prunus.errors import ConfigError
from prunus.pipeline.recipe import Recipe
from prunus.pipeline.texts import names_in

PARTS: dict[str, Any] = {
    "model": options.AnyModel,
    "data": options.AnyData,
    "load": options.Reads,
    "target": options.Target,
    "method": options.MethodSpec,
    "set": options.Settings,
    "repair": options.Repair,
    "recover": options.Recover,
    "allocate": options.Allocate,
    "allow": options.Allow,
    "ignore": options.Ignore,
    "weights": options.Weights,
    "out": options.AnyOut,
    "labels": options.Labels,
    "export": options.Export,
    "run": options.Run,
    "seed": options.AnySeed,
}
FILE = "recipe"
Command = Callable[..., Mapping[str, Any] | None]


def from_recipe(function: Command) -> Command:
    """A command with an option for every part, in place of its first parameter, which is the recipe that they make."""
    _, *own = inspect.signature(function).parameters.values()
    hints = {**inspect.get_annotations(function, eval_str=True), **PARTS, FILE: options.Recipe}

    @functools.wraps(function)
    def called(**given: Any) -> Mapping[str, Any] | None:
        rest = {p.name: given.pop(p.name) for p in own}
        return function(recipe_from(given.pop(FILE), given), **rest)

    taken = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[name])
        for name in (*PARTS, FILE)
    ]
    named = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in own]
    called.__signature__ = inspect.Signature([*taken, *named])  # type: ignore[attr-defined]
    called.__annotations__ = {name: hints[name] for name in (*PARTS, FILE, *(p.name for p in own))}
    return called


def recipe_from(file: Path | None, given: Mapping[str, Any]) -> Recipe:
    """The recipe of a file with what is said besides, or of what is said alone.

    Raises:
        ConfigError: the file is none, or model or data are not said.
    """
    said = {name: _part(name, value) for name, value in given.items() if value is not None}
    if file is not None:
        return Recipe.load_file(file).but(**said)
    for name, form in (("model", "MODEL"), ("data", "--data DATA")):
        if name not in said:
            raise ConfigError(form, "it is not said", f"give {form}, or --recipe FILE that says the {name}")
    return Recipe.of(said)


def _part(name: str, value: Any) -> Any:
    if name == "allow":
        return names_in(value)
    return tuple(value) if isinstance(value, list) else str(value) if isinstance(value, Path) else value
