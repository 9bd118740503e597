"""How earlier releases spelled what `prune` and `compress` are asked; see `runtime.renamed`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prunus.errors import ConfigError
from prunus.files.stagefile import Checkpoint
from prunus.pipeline.settings import RunSettings
from prunus.plan.budget import Budget
from prunus.plan.request import ALLOW
from prunus.runtime.renamed import Renamed


def _target(given: Mapping[str, Any], _: Any) -> Any:
    if len(given) > 1:
        raise ConfigError("target", f"give one of {', '.join(given)}", "target='macs<=50%'")
    ((name, value),) = given.items()
    # A bare number was no budget, and must not become a ratio by its new name.
    return Budget.parse(value) if name == "budget" and not isinstance(value, str | Budget) else value


def _checkpoint(given: Mapping[str, Any], path: Any) -> Any:
    if isinstance(path, Checkpoint):
        raise ConfigError("resume=True", "checkpoint says it too", "give checkpoint=Checkpoint(path, resume=True)")
    if path is None:
        raise ConfigError("resume=True", "no checkpoint to go on from", "pass checkpoint=Checkpoint(PATH, resume=True)")
    return Checkpoint(path, resume=True)


TARGET = Renamed("target", ("budget", "pruning_ratio", "kept_counts", "pattern"), _target)
OPENED = Renamed("allow", ALLOW, lambda given, _: tuple(given))
RESUMED = Renamed("checkpoint", ("resume",), _checkpoint, joins=True)
RUN = Renamed(
    "run",
    ("batch_size", "modes", "resume", "say"),
    lambda given, run: replace(run or RunSettings(), **{**given, **_tuple(given)}),
    joins=True,
)


def _tuple(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"modes": tuple(given["modes"])} if "modes" in given else {}
