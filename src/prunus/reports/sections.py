"""What each part of the report says and shows, from what a run left; what is not there is said to be missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunus.masks.file import LayerMask
from prunus.plan.plan import GroupPlan, Plan
from prunus.reports import charts
from prunus.reports.features import Features, Maps
from prunus.reports.folder import RunFiles
from prunus.reports.pictures import png_address
from prunus.reports.record import Record, ScoreRecord
from prunus.reports.tables import changes

SHARES = (90, 75, 50, 25, 10)
"""Per cent of a group's units for which the loss table has a column."""


FORMERLY = "validation_accuracy"
"""What the score of an epoch was called in the first records."""
PICTURE = (160, 320)
"""Largest picture of a mask, rows and columns."""


@dataclass(frozen=True)
class Sections:
    """What the page is made of.

    Attributes:
        texts: for the template, by name.
        data: for the charts, plain data.
    """

    texts: Mapping[str, Any]
    data: Mapping[str, Any]


def sections_of(run: RunFiles) -> Sections:
    """All parts of the report."""
    summary, plan, record = run.summary, run.plan, run.record or Record()
    groups = {g.name: g for g in plan.groups}
    offers = record.offers[::-1]
    drawn = {n: (g, record.scores[n]) for n, g in groups.items() if _fits(g, record.scores.get(n))}
    options = {
        "network": charts.network(record.steps, summary.get("layers") or {}) if record.steps else None,
        "learning": charts.curve({"loss": record.learning}, "epoch", "loss", 1) if record.learning else None,
        "recovery": _recovery(record),
        "repair": charts.repair(_refits(summary)) if _refits(summary) else None,
        "budget": charts.budget({n: g.units for n, g in groups.items() if not g.block}) if record.offers else None,
        "price": charts.price(record.offers, plan.before.macs),
        **{f"masks-{metric}": option for metric, option in charts.mask_curves(record.masks).items()},
    }
    drawings = {name: option for name, option in options.items() if option is not None}
    data = {
        "charts": drawings,
        "groups": {name: charts.posterior(*pair, most=charts.units_drawn(len(drawn))) for name, pair in drawn.items()},
        "units": {g.name: g.units for g in plan.groups if not g.block},
        "offers": [vars(offer) for offer in offers],
        "dense": {"macs": plan.before.macs, "params": plan.before.params},
    }
    texts = {
        "summary": summary,
        "headline": changes(summary),
        "notes": plan.notes,
        "warnings": summary.get("speed", {}).get("warnings", ()),
        "proof": summary.get("proof", {}),
        "steps": record.steps,
        "groups": [_row(g, record.scores.get(g.name), n in drawn) for n, g in groups.items()],
        "layers": summary.get("layers") or {},
        "pictures": [_mask(name, mask) for name, mask in run.masks.items()],
        "offers": offers,
        "own": next((i for i, offer in enumerate(offers) if offer.own), 0),
        "losses": _losses(plan, record),
        "shares": SHARES,
        "charts": drawings,
        "mask_metrics": [n for n in drawings if n.startswith("masks-")],
        "promised": "@" in plan.asked,
        "features": _shown(run.features, plan, record),
        "made": record.made or summary.get("versions", {}),
        "digests": run.digests,
        "missing": _missing(run, record),
    }
    return Sections(texts, data)


def _fits(group: GroupPlan, found: ScoreRecord | None) -> bool:
    """Whether a record can be of this group."""
    if found is None or len(found.score) != group.units:
        return False
    ends = group.units if found.mean else 0
    return len(found.measured) in (0, group.units) and {len(v) for v in (found.mean, found.low, found.high)} == {ends}


def _row(group: GroupPlan, found: ScoreRecord | None, drawn: bool) -> dict[str, Any]:
    return {
        "name": group.name,
        "block": group.block,
        "units": group.units,
        "kept": len(group.kept),
        "share": 100 * len(group.kept) / group.units,
        "undecided": None if group.keep_probability is None else len(group.undecided),
        "saved": group.macs_saved,
        "measured": sum(found.measured) if found and found.measured else None,
        "drawn": drawn,
    }


def _losses(plan: Plan, record: Record) -> list[tuple[str, list[float]]]:
    """By group the measured loss if so much of it stays, see `SHARES`."""
    found = []
    for group in plan.groups:
        found_out = record.scores.get(group.name)
        measured = found_out.measured if found_out is not None and _fits(group, found_out) else ()
        if measured:
            least = np.concatenate([[0.0], np.cumsum(sorted(measured))])
            found.append((group.name, [float(least[round(group.units * (100 - s) / 100)]) for s in SHARES]))
    return found


def _recovery(record: Record) -> charts.Option | None:
    scores = [epoch.get("validation_score", epoch.get(FORMERLY)) for epoch in record.recovery]
    if all(score is None for score in scores):
        return None
    return charts.curve({"validation": scores}, "epoch (0: as it came)", "score on validation")


def _refits(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = summary.get("repair", [])
    whole = isinstance(found, list) and all(
        isinstance(r, dict) and {"layer", "before", "after"} <= set(r) for r in found
    )
    return [r for r in found if r["before"] is not None and r["after"] is not None] if whole else []


def _shown(features: Features | None, plan: Plan, record: Record) -> dict[str, Any] | None:
    if features is None:
        return None
    kept = plan.kept
    layers = [
        {"name": name, "rows": [_channel(name, unit, number, maps, kept) for number, unit in enumerate(maps.units)]}
        for name, maps in features.maps.items()
    ]
    first = features.filters
    stays = next((set(kept[n]) for s in record.steps if s.name == features.layer for n in s.groups if n in kept), None)
    filters = [] if first is None else [
        {"unit": unit, "kept": stays is None or unit in stays, "src": png_address(_colours(picture))}
        for unit, picture in enumerate(first)
    ]  # fmt: skip
    inputs = [] if features.inputs is None else [png_address(_colours(picture)) for picture in features.inputs]
    return {"inputs": inputs, "layers": layers, "layer": features.layer, "filters": filters}


def _channel(name: str, unit: int, number: int, maps: Maps, kept: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    pictures = maps.pictures[number]
    return {
        "unit": unit,
        "kept": name not in kept or unit in set(kept[name]),
        "strip": pictures.shape[1] == 1,
        "maps": [png_address(picture) for picture in pictures],
    }


def _mask(name: str, mask: LayerMask) -> dict[str, Any]:
    """A mask as a picture: what stays is dark; averaged down to `PICTURE` where it is larger."""
    whole = mask.mask.numpy().astype(np.float64)
    rows, n = whole.shape
    for axis in (0, 1):
        size = whole.shape[axis]
        parts = min(size, PICTURE[axis])
        starts = np.arange(parts) * size // parts
        counts = np.diff([*starts, size]).reshape((-1, 1) if axis == 0 else (1, -1))
        whole = np.add.reduceat(whole, starts, axis=axis) / counts
    pixels = (255 * (1 - whole / max(whole.max(), 1e-12))).astype(np.uint8)
    return {"name": name, "pattern": mask.pattern, "rows": rows, "n": n, "src": png_address(pixels)}


def _colours(picture: Any) -> Any:
    """[C, H, W] as the picture format has it."""
    return picture[0] if len(picture) == 1 else np.moveaxis(picture[:3], 0, -1)


def _missing(run: RunFiles, record: Record) -> list[str]:
    """What this run did not write down, in words."""
    if run.record is None:
        return ["network, scores, other budgets and curves (a release that wrote no record.json made the run)"]
    masked, summary = bool(run.plan.patterns), run.summary
    told = {
        "a learning curve (the method learns nothing, or not in epochs)": not record.learning,
        "recovery (there was none)": not record.recovery and not masked,
        "repair (there was none)": not summary.get("repair") and not masked,
        "losses of what goes (none were measured)": not masked and not any(s.measured for s in record.scores.values()),
        "results on a test split (there is none, or the run ended before)": "dense_test" not in summary.get("loss", {}),
        "latency (nothing was timed)": not summary.get("speed", {}).get("modes"),
        "features (none were recorded)": run.features is None,
    }
    return [text for text, holds in told.items() if holds]
