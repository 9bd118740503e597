"""`prunus compress`: from a trained model and its data to a folder with a smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunus.cli.finish import told
from prunus.cli.options import (
    Allocate,
    Allow,
    AnyData,
    AnyModel,
    AnyOut,
    AnySeed,
    Export,
    Ignore,
    Labels,
    MethodSpec,
    Reads,
    Recover,
    Repair,
    Run,
    Settings,
    Target,
    Weights,
)
from prunus.cli.options import Recipe as RecipeFile
from prunus.cli.terminal import command, say
from prunus.errors import ConfigError
from prunus.pipeline.recipe import Recipe
from prunus.pipeline.run import carried_out, understood
from prunus.pipeline.texts import names_in


def compress_command(
    model: AnyModel = None,
    data: AnyData = None,
    load: Reads = None,
    target: Target = None,
    method: MethodSpec = None,
    settings: Settings = None,
    repair: Repair = None,
    recover: Recover = None,
    allocate: Allocate = None,
    allow: Allow = None,
    ignore: Ignore = None,
    weights: Weights = None,
    out: AnyOut = None,
    labels: Labels = None,
    export: Export = None,
    run: Run = None,
    seed: AnySeed = None,
    recipe: RecipeFile = None,
) -> dict[str, Any]:
    """Compress a trained model, recover its accuracy, prove, measure and save it."""
    parts = {
        "model": model, "data": data, "load": load, "target": target, "method": method, "set": settings,
        "repair": repair, "recover": recover, "allocate": allocate, "allow": None if allow is None else names_in(allow),
        "ignore": ignore, "weights": weights, "out": out, "labels": labels, "export": export, "run": run, "seed": seed,
    }  # fmt: skip
    order = understood(recipe_from(recipe, parts), say)
    done, failed = carried_out(order, say, command=command.get())
    told(done)
    if failed is not None:
        raise failed
    return {**done.summary, "directory": str(done.directory)}


def recipe_from(file: Path | None, parts: dict[str, Any]) -> Recipe:
    """The recipe of a file with what is said besides, or of what is said alone.

    Raises:
        ConfigError: the file is none, or model or data are not said.
    """
    said = {name: tuple(value) if isinstance(value, list) else value for name, value in parts.items()}
    said = {name: str(value) if isinstance(value, Path) else value for name, value in said.items()}
    if file is not None:
        return Recipe.load_file(file).but(**said)
    for name, form in (("model", "MODEL"), ("data", "--data DATA")):
        if said[name] is None:
            raise ConfigError(form, "it is not said", f"give {form}, or --recipe FILE that says the {name}")
    return Recipe.of({name: value for name, value in said.items() if value is not None})
