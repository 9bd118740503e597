"""`summary.json` as it is read back: every part that tables and the page look at has its type, or is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prunus.files.decoding import Malformed, decode

Judged = Mapping[str, float | None]
Row = Mapping[str, Any]

NEEDED: Row = {
    "model": str,
    "data": str,
    "method": str,
    "asked": str,
    "before": Mapping[str, float],
    "after": Mapping[str, float],
}
PARTS: Row = {
    "loss": Judged,
    "metric": Mapping[str, str],
    "proof": Mapping[str, float | bool | None],
    "repair": tuple[Row, ...],
    "layers": Mapping[str, Row],
    "speed": Row,
    "versions": Mapping[str, str],
}
"""What may be missing."""
METRIC: Row = {"name": str, "better": str, "unit": str}
PROOF: Row = {"tolerance": float}
REFIT: Row = {
    "layer": str,
    "before": float | None,
    "after": float | None,
    "samples": int,
    "reason": str,
}
LAYER: Row = {
    "weights": int,
    "kept": int,
    "dense_bytes": int,
    "stored_bytes": int,
    "confidence": float | None,
    "diversity": float | None,
    "flips": float | None,
}
SPEED: Row = {
    "modes": tuple[Row, ...],
    "warnings": tuple[str, ...],
    "batch_size": int,
    "threads": int,
    "device": str,
}
MODE: Row = {"mode": str, "ratio": float | None, "reason": str}


def checked_summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """A summary whose parts have their types.

    Args:
        found: what the file holds.

    Returns:
        The same; of what networks were judged by, numbers that are none (null in JSON) are NaN again.

    Raises:
        Malformed: a part is missing that every run has, or is something else than what a run writes.
    """
    _has(found, NEEDED, "summary")
    _has(found, {name: hint for name, hint in PARTS.items() if name in found}, "summary")
    metric = found.get("metric")
    if metric is not None:
        _has(metric, METRIC, "summary.metric")
    if found.get("proof"):
        _has(found["proof"], PROOF, "summary.proof")
    for number, refit in enumerate(found.get("repair", ())):
        known = refit.get("before") is not None and refit.get("after") is not None
        _has(refit, {**REFIT, "won_back": float if known else float | None}, f"summary.repair[{number}]")
    for name, layer in found.get("layers", {}).items():
        _has(layer, LAYER, f"summary.layers[{name!r}]")
        if layer["weights"] < 1:
            raise Malformed(f"summary.layers[{name!r}] has no weights")
    if found.get("speed"):
        _has(found["speed"], SPEED, "summary.speed")
        for number, mode in enumerate(found["speed"]["modes"]):
            _mode(mode, f"summary.speed.modes[{number}]")
    scores = {"accuracy", "agreement", "loss", *([metric["name"]] if metric else [])} & found.keys()
    _has(found, dict.fromkeys(scores, Judged), "summary")
    told = {name: {k: math.nan if v is None else v for k, v in found[name].items()} for name in scores}
    return {**found, **told}


def _mode(mode: Row, where: str) -> None:
    _has(mode, MODE, where)
    ratio = mode.get("ratio")
    if ratio is None:
        return
    if ratio <= 0:
        raise Malformed(f"{where}.ratio is {ratio}")
    for when in ("before", "after"):
        _has(decode(Row, mode.get(when), f"{where}.{when}"), {"median": float}, f"{where}.{when}")


def _has(found: Mapping[str, Any], hints: Row, where: str) -> None:
    """Refuse what has another type, and what is missing unless it may be None."""
    for name, hint in hints.items():
        decode(hint, found.get(name), f"{where}.{name}")
