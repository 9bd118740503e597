"""What a run is told as text, on the command line and in recipes, as what the library takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from prunus.errors import ConfigError
from prunus.formats.exports import Choice, chosen
from prunus.formats.registry import EXPORTERS
from prunus.methods.settings import configure, values_of
from prunus.pipeline.settings import RunSettings
from prunus.plan.allocation import Allocation
from prunus.recovery.config import FinetuneConfig
from prunus.refit.config import RepairConfig
from prunus.runtime.progress import Say

COUNTS = re.compile(r"[^<>=]+=[^<>=]+(,[^<>=]+=[^<>=]+)*")


def target_of(text: str | None) -> Any:
    """A target from text: a number, NAME=... by layer or group, or text that `prune` reads itself."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    if not COUNTS.fullmatch(text):
        return text
    parts = [part.split("=") for part in text.split(",")]
    named = {name.strip(): value.strip() for name, value in parts}
    if len(named) < len(parts):
        raise ConfigError(f"--target {text}", "a group or layer is named twice", "name it once")
    if all(value.isdecimal() for value in named.values()):
        return {name: int(value) for name, value in named.items()}
    return named


def recovery_of(settings: Sequence[str], seed: int, *, default: bool) -> FinetuneConfig | None:
    """The recovery from its settings; None where there is to be none. Without settings `default` says if there is one.

    Raises:
        ConfigError: an unknown setting.
    """
    if not settings:
        return FinetuneConfig(seed=seed) if default else None
    if "none" in settings:
        values_of(FinetuneConfig, [s for s in settings if s != "none"])
        return None
    given = {} if any(s.partition("=")[0].strip() == "seed" for s in settings) else {"seed": seed}
    return FinetuneConfig(**given, **values_of(FinetuneConfig, settings))  # type: ignore[arg-type]


def repair_of(settings: Sequence[str]) -> bool | RepairConfig:
    """The repair from its settings. Raises ConfigError for an unknown setting."""
    if not settings:
        return True
    found = values_of(RepairConfig, [s for s in settings if s != "none"])
    return False if "none" in settings else RepairConfig(**found)  # type: ignore[arg-type]


def allocation_of(settings: Sequence[str]) -> Allocation | None:
    """The allocation, if anything was said about it. Raises ConfigError for an unknown setting."""
    return configure(Allocation, settings) if settings else None


def label_free(labels: str) -> bool:
    """Whether no label is to be looked at. Raises ConfigError for another word than the option has."""
    if labels not in ("given", "none"):
        raise ConfigError(f"--labels {labels}", "it is neither given nor none", "leave it out, or write --labels none")
    return labels == "none"


def names_in(text: str | None) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def exports_of(text: str) -> Choice:
    """Which exporters are wanted; refused before any work. See `chosen`."""
    return chosen(names_in(text))


def run_of(settings: Sequence[str], exports: Choice, say: Say) -> RunSettings:
    """How a run is carried out; without a word the ways to run that are timed are eager and, if it is written, ONNX.

    Raises:
        ConfigError: an unknown setting.
    """
    found = values_of(RunSettings, settings, ("say",))
    onnx = EXPORTERS["onnx"]
    wanted = onnx in exports.asked or (exports.auto and "onnx" not in exports.without and onnx.works())
    return RunSettings(**{"modes": ("eager", "onnx") if wanted else ("eager",), **found}, say=say)
