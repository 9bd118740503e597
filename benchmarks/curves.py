"""Figures of a comparison: accuracy against MACs, parameters and measured latency, the best of each family by name."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

STAGE = "one-shot"
DEFAULT = ("dirichlet", True)
Row = dict[str, Any]
Way = tuple[str, bool]

TRAINING = ("rbp", "sbp", "vib", "l0", "bmrs", "dpp")
REWRITTEN = ("OPD", "OBS", "VBP", "GRAIL")
FAMILIES = ("ours", "not repaired", "repaired", "criterion", "trains along", "Torch-Pruning", *REWRITTEN)
STYLES = dict(
    zip(
        FAMILIES,
        [
            ("#0b5fa5", "-"), ("#0b5fa5", ":"), ("#d1495b", "-"), ("#d1495b", ":"), ("#8a5a00", "--"),
            ("#222222", "--"), ("#6a4c93", "-."), ("#b5651d", "-."), ("#3aa6a6", "-."), ("#2e7d32", "-."),
        ],
        strict=True,
    )
)  # fmt: skip
"""Colour and line of each."""
AXES = {"macs": "MACs kept, %", "params": "parameters kept, %", "latency": "measured latency, %"}


def scores(rows: list[Row], stage: str) -> dict[Way, list[float]]:
    """Of every method, with and without repair, by seed."""
    found: dict[Way, list[float]] = defaultdict(list)
    for row in rows:
        if stage in row:
            found[row["method"], row["repair"]].append(row[stage]["score"])
    return dict(found)


def named(way: Way) -> str:
    """A method as tables call it."""
    return f"{way[0]}, repaired" if way[1] else way[0]


def stages_of(rows: list[Row]) -> list[str]:
    """What was judged, in order."""
    found = {key for row in rows for key, value in row.items() if isinstance(value, dict) and "score" in value}
    return [STAGE, *sorted(found - {STAGE})]


def family(way: Way) -> str:
    """Which kind of thing it is."""
    method, repaired = way
    if method == DEFAULT[0]:
        return "ours" if repaired else "not repaired"
    if method in REWRITTEN:
        return method
    if method.startswith("TP "):
        return "Torch-Pruning"
    return "repaired" if repaired else "trains along" if method in TRAINING else "criterion"


def best_of_each(rows: list[Row], stages: list[str]) -> dict[Way, str]:
    """Of every family the way with the highest mean over stages and targets, among those with the most of these."""
    found: dict[str, list[tuple[int, float, Way]]] = defaultdict(list)
    for way in {(r["method"], r["repair"]) for r in rows}:
        own = [r for r in rows if (r["method"], r["repair"]) == way]
        cells = [[r[s]["score"] for r in own if s in r and r["target"] == t] for s in stages for t in _targets(own)]
        means = [statistics.mean(values) for values in cells if values]
        found[family(way)] += [(len(means), statistics.mean(means), way)] if means else []
    return {max(ways)[2]: kind for kind, ways in found.items() if ways}


def figure(rows: list[Row], net: str, path: Path) -> None:
    """A line of panels for one-shot and one for the last recovery; bars are one standard deviation over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stages = list(dict.fromkeys([STAGE, stages_of(rows)[-1]]))
    timed = any("latency" in r for r in rows)
    kinds = ["macs", "params", *(["latency"] if timed else [])]
    size = (4.4 * len(kinds), 3.4 * len(stages) + 0.9)
    drawn, panels = plt.subplots(len(stages), len(kinds), figsize=size, dpi=120, squeeze=False, sharey="row")
    dense = statistics.mean(r["dense"] for r in rows)
    for line, stage in zip(panels, stages, strict=True):
        lowest = dense
        for panel, kind in zip(line, kinds, strict=True):
            own = [r for r in rows if isinstance(r["target"], str) == (kind == "latency")]
            shown = best_of_each(own, stages)
            lowest = min(lowest, *_draw(panel, [r for r in own if stage in r], stage, kind, shown), dense)
            panel.axhline(dense, color="#999999", linewidth=0.8, label="dense")
            panel.set_xlabel(AXES[kind])
            panel.grid(color="#eeeeee")
        room = 0.08 * (dense - lowest) + 0.1
        line[0].set_ylim(max(0.0, lowest - room), dense + room)
        line[0].set_ylabel("test accuracy, %")
        line[0].set_title(stage, loc="left", fontsize=10)
    labels: dict[str, Any] = {}
    for panel in panels.flat:
        labels |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    drawn.suptitle(f"{net}: the best of each family on average, the others grey")
    drawn.tight_layout(rect=(0, 0.7 / size[1], 1, 1))
    drawn.legend(labels.values(), labels.keys(), loc="lower center", ncols=4, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path)
    plt.close(drawn)


def _draw(panel: Any, rows: list[Row], stage: str, kind: str, shown: dict[Way, str]) -> list[float]:
    """Lines of one panel; the scores of those that have a name."""
    scored = []
    for way in sorted({(r["method"], r["repair"]) for r in rows}, key=lambda way: way in shown):
        x, y, wide, high = zip(*_points(rows, way, stage, kind), strict=True)
        if way not in shown:
            panel.plot(x, y, color="#cccccc", linewidth=0.8, marker=".", markersize=3, zorder=1)
            continue
        colour, line = STYLES[shown[way]]
        label = named(way) if shown[way] in ("ours", "not repaired", *REWRITTEN) else f"{shown[way]}: {way[0]}"
        width = 2.2 if shown[way] == "ours" else 1.3
        style = {"color": colour, "linestyle": line, "linewidth": width, "marker": "o", "markersize": 4, "capsize": 2}
        panel.errorbar(x, y, high, wide, elinewidth=0.9, label=label, zorder=3, **style)
        scored += y
    return scored


def _points(rows: list[Row], way: Way, stage: str, kind: str) -> Iterable[tuple[float, float, float, float]]:
    """Per cent of the resource, score, and the spread of each, target by target."""
    for target in _targets(rows):
        own = [r for r in rows if (r["method"], r["repair"], r["target"]) == (*way, target)]
        if own:
            spent = [100 * (r[kind]["median"] if kind == "latency" else r[kind]) for r in own]
            values = [r[stage]["score"] for r in own]
            spreads = [statistics.stdev(v) if len(own) > 1 else 0.0 for v in (spent, values)]
            yield statistics.mean(spent), statistics.mean(values), *spreads


def _targets(rows: list[Row]) -> list[Any]:
    return sorted({r["target"] for r in rows}, key=str)
