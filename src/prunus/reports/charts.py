"""What the report draws, as options of Apache ECharts: plain data, with names of colours that the page fills in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunus.plan.keeping import UNDECIDED
from prunus.plan.plan import GroupPlan
from prunus.reports.offers import Offer
from prunus.reports.record import MASK_METRICS, ScoreRecord, StepRecord

ROW, EDGES = 20, 46
"""Height of a row, and above and below them, in pixels."""
KEPT, GONE, LOCKED, LINE, PALE = "var(--kept)", "var(--gone)", "var(--locked)", "var(--line)", "var(--pale)"
SERIES = [KEPT, GONE, "var(--third)", "var(--fourth)", "var(--fifth)"]
HATCHED = {"symbol": "rect", "rotation": 0.785, "dashArrayX": [1, 0], "dashArrayY": [2, 4], "color": "var(--hatch)"}
DRAWN, LEAST, TOGETHER = 1024, 16, 1 << 15
"""Units drawn of a group at most (of more, evenly chosen ranks), and at least; of all groups together."""
NAMES = {"interval": 0, "width": 196, "fontSize": 11}
"""Labels of rows; the page leaves out the beginning of what is longer."""
SWING = 44
"""Pixels that an edge may swing out to the left."""
MOST_LINES = 12
"""Layers drawn as a line each; of more, evenly chosen ones."""

Option = dict[str, Any]


def network(steps: Sequence[StepRecord], layers: Mapping[str, Mapping[str, Any]]) -> Option:
    """The network from top to bottom: what leads where, width before (pale) and after, what is locked (hatched).

    Args:
        steps: in data flow.
        layers: of masks inside weights, by layer how many of how many stay; the filling is then their share.
    """
    names = [str(number) for number in range(len(steps))]
    marks = [
        {
            "name": str(number),
            "value": [0, number],
            "symbol": {"layer": "circle", "junction": "diamond"}.get(step.kind, "triangle"),
            "symbolSize": 7 if step.kind == "layer" else 9,
            "symbolRotate": 180 if step.kind in ("input", "output") else 0,
            "tip": _told(step),
        }
        for number, step in enumerate(steps)
    ]
    ways = [
        {
            "source": str(earlier),
            "target": str(number),
            "lineStyle": {"curveness": _bend(number - earlier)},
        }
        for number, step in enumerate(steps)
        for earlier in step.after
    ]
    before, left = [], []
    for step in steps:
        tip, inside = _told(step), layers.get(step.name)
        told = "" if not step.before else str(step.before) if step.left == step.before else _narrowed(step)
        share = 1.0 if inside is None else inside["kept"] / inside["weights"]
        if inside is not None:
            tip = [*tip, f"weights: {inside['kept']:,} of {inside['weights']:,} stay"]
            told += f" \N{MULTIPLICATION SIGN} {100 * share:.0f} %"
        before.append({"value": step.before or None, "tip": tip, "label": {"formatter": told}})
        color = LOCKED if step.locked else KEPT
        style = {"color": color, **({"decal": HATCHED} if step.locked else {})}
        left.append({"value": share * step.left or None, "tip": tip, "itemStyle": style})
    bar = {"type": "bar", "xAxisIndex": 1, "yAxisIndex": 1, "barWidth": 11, "barGap": "-100%"}
    return {
        "height": ROW * len(steps) + EDGES,
        "tooltip": {"trigger": "item"},
        "grid": [
            {"left": 4, "width": 58, "top": 6, "height": ROW * len(steps), "outerBoundsMode": "none"},
            {"left": 270, "right": 96, "top": 6, "height": ROW * len(steps), "outerBoundsMode": "none"},
        ],
        "xAxis": [
            {"type": "value", "min": -1, "max": 0.1, "show": False},
            {"type": "value", "gridIndex": 1, "name": "units", "nameLocation": "middle", "nameGap": 22},
        ],
        "yAxis": [
            {"type": "category", "inverse": True, "data": names, "show": False},
            {
                "type": "category",
                "gridIndex": 1,
                "inverse": True,
                "data": [_called(step) for step in steps],
                "axisTick": {"show": False},
                "axisLine": {"show": False},
                "axisLabel": {**NAMES, "align": "left", "margin": 200},
            },
        ],
        "series": [
            {
                "type": "graph",
                "coordinateSystem": "cartesian2d",
                "data": marks,
                "links": ways,
                "edgeSymbol": ["none", "none"],
                "itemStyle": {"color": LINE},
                "lineStyle": {"color": LINE, "width": 1.4, "opacity": 0.9},
                "emphasis": {"focus": "adjacency"},
            },
            {
                **bar,
                "name": "before",
                "data": before,
                "itemStyle": {"color": PALE, "borderColor": LINE, "borderWidth": 1},
                "label": {"show": True, "position": "right", "fontSize": 11},
            },
            {**bar, "name": "after", "data": left, "z": 3},
        ],
    }


def units_drawn(groups: int) -> int:
    """How many units are drawn of each of so many groups, so that the page can be opened."""
    return max(LEAST, min(DRAWN, TOGETHER // max(groups, 1)))


def posterior(group: GroupPlan, found: ScoreRecord, most: int = DRAWN) -> Option:
    """A group's units by falling score: means (or scores), intervals, what stays, and below how probable that is.

    Args:
        group: of the plan.
        found: what the method found out about it.
        most: units that are drawn.
    """
    center = found.mean or found.score
    order = sorted(range(len(center)), key=lambda unit: (-found.score[unit], -center[unit]))
    step = max(1, -(-len(order) // most))
    ranked = list(enumerate(order))[::step]
    kept, chances = set(group.kept), group.keep_probability
    points: dict[bool, list[Option]] = {True: [], False: []}
    for rank, unit in ranked:
        lines = [f"unit {unit}, number {rank + 1} of {len(order)}", "stays" if unit in kept else "goes"]
        if found.mean:
            lines.append(
                f"multiplier {found.mean[unit]:.3g}, 95 % within {found.low[unit]:.3g} to {found.high[unit]:.3g}"
            )
        lines.append(f"score {found.score[unit]:.4g}")
        lines += [f"probability to be among what stays {chances[unit]:.1%}"] if chances else []
        lines += [f"loss that it was measured to save {found.measured[unit]:.3g}"] if found.measured else []
        points[unit in kept].append({"value": [rank + 1, center[unit]], "tip": lines})
    ends = {"showMinLabel": False, "showMaxLabel": False}
    axis = {"type": "value", "min": 0.5, "max": len(order) + 0.5, "splitLine": {"show": False}, "axisLabel": ends}
    named = {"nameLocation": "middle", "nameGap": 44}
    series: list[Option] = []
    if found.mean:
        band = {
            "type": "line",
            "stack": "interval",
            "symbol": "none",
            "silent": True,
            "z": 1,
            "lineStyle": {"opacity": 0},
        }
        low = [[rank + 1, found.low[unit]] for rank, unit in ranked]
        wide = [[rank + 1, found.high[unit] - found.low[unit]] for rank, unit in ranked]
        series += [{**band, "name": "lower end", "data": low}]
        series += [
            {
                **band,
                "name": "95 % interval",
                "data": wide,
                "itemStyle": {"color": PALE},
                "areaStyle": {"color": PALE, "opacity": 1},
            }
        ]
    size = 8 if len(order) <= 80 else 5
    series += [
        {"type": "scatter", "name": "stays", "data": points[True], "symbol": "circle", "symbolSize": size, "z": 3,
         "itemStyle": {"color": KEPT}},
        {"type": "scatter", "name": "goes", "data": points[False], "symbol": "diamond", "symbolSize": size + 2, "z": 3,
         "itemStyle": {"color": GONE}},
    ]  # fmt: skip
    shown = [s["name"] for s in series if s["name"] != "lower end"]
    option: Option = {
        "height": 250,
        "legend": {"top": 0, "data": shown},
        "tooltip": {"trigger": "item"},
        "grid": [{"left": 64, "right": 14, "top": 34, "bottom": 38}],
        "xAxis": [{**axis, "name": "units, best first", "nameLocation": "middle", "nameGap": 24}],
        "yAxis": [{"type": "value", "scale": True, "name": "multiplier" if found.mean else "score", **named}],
        "series": series,
    }
    if chances:
        option["height"] = 400
        option["grid"] = [
            {"left": 64, "right": 14, "top": 34, "height": 180},
            {"left": 64, "right": 14, "top": 240, "bottom": 38},
        ]
        option["xAxis"] = [axis, {**option["xAxis"][0], "gridIndex": 1}]
        option["yAxis"].append(
            {"type": "value", "gridIndex": 1, "min": 0, "max": 1, "interval": 0.5, "name": "P(stays)", **named}
        )
        line = [[rank + 1, chances[unit]] for rank, unit in ranked]
        between = [[{"yAxis": UNDECIDED[0]}, {"yAxis": UNDECIDED[1]}]]
        option["series"].append(
            {
                "type": "line", "step": "middle", "xAxisIndex": 1, "yAxisIndex": 1, "symbol": "none",
                "name": "probability to stay", "data": line, "lineStyle": {"color": KEPT},
                "markArea": {"silent": True, "itemStyle": {"color": PALE, "opacity": 0.6}, "data": between},
            }
        )  # fmt: skip
    return option


def budget(units: Mapping[str, int]) -> Option:
    """Bars for what each group keeps under a budget; the page fills in how much."""
    return {
        "height": ROW * len(units) + 60,
        "tooltip": {"trigger": "item"},
        "grid": [{"left": 206, "right": 90, "top": 6, "bottom": 40}],
        "xAxis": {"type": "value", "min": 0, "max": 100, "name": "units that stay, %", "nameLocation": "middle",
                  "nameGap": 24},
        "yAxis": {"type": "category", "inverse": True, "data": list(units), "axisTick": {"show": False},
                  "axisLabel": NAMES},
        "series": [{"type": "bar", "barWidth": 11, "showBackground": True, "backgroundStyle": {"color": PALE},
                    "itemStyle": {"color": KEPT}, "data": [],
                    "label": {"show": True, "position": "right", "fontSize": 11}}],
    }  # fmt: skip


def price(offers: Sequence[Offer], dense: int) -> Option | None:
    """The measured loss of what goes, by budget; None where nothing was measured."""
    line = [{"value": [100 * o.macs / dense, o.loss]} for o in offers if o.loss is not None]
    if not line:
        return None
    return {
        "height": 230,
        "tooltip": {"trigger": "axis"},
        "grid": [{"left": 74, "right": 14, "top": 24, "bottom": 40}],
        "xAxis": {"type": "value", "name": "MACs, %", "nameLocation": "middle", "nameGap": 24, "min": 0, "max": 100},
        "yAxis": {"type": "value", "name": "loss of what goes", "nameLocation": "middle", "nameGap": 56},
        "series": [{"type": "line", "name": "loss of what goes", "data": line, "lineStyle": {"color": KEPT},
                    "itemStyle": {"color": KEPT}, "symbolSize": 6},
                   {"type": "scatter", "name": "shown", "symbol": "diamond", "symbolSize": 16, "data": [],
                    "itemStyle": {"color": GONE}}],
    }  # fmt: skip


def curve(values: Mapping[str, Sequence[float | None]], x: str, y: str, first: int = 0) -> Option:
    """Lines over a count from `first` on."""
    chosen = list(values)[:: max(1, -(-len(values) // MOST_LINES))]
    many = len(chosen) > 1
    dots = max((len(v) for v in values.values()), default=0) <= 60
    return {
        "height": 260,
        "legend": {"show": many, "type": "scroll", "top": 0},
        "tooltip": {"trigger": "axis"},
        "color": SERIES if len(chosen) <= len(SERIES) else None,
        "grid": [{"left": 64, "right": 18, "top": 34 if many else 24, "bottom": 40}],
        "xAxis": {"type": "value", "minInterval": 1, "min": "dataMin", "max": "dataMax", "name": x,
                  "nameLocation": "middle", "nameGap": 24, "splitLine": {"show": False}},
        "yAxis": {"type": "value", "scale": True, "name": y, "nameLocation": "middle", "nameGap": 48},
        "series": [{"type": "line", "name": name, "data": [[first + i, v] for i, v in enumerate(values[name])],
                    "showSymbol": dots, "symbolSize": 6, "symbol": SYMBOLS[number % len(SYMBOLS)]}
                   for number, name in enumerate(chosen)],
    }  # fmt: skip


SYMBOLS = ("circle", "diamond", "rect", "triangle", "emptyCircle", "emptyDiamond", "emptyRect", "emptyTriangle")


def repair(refits: Sequence[Mapping[str, Any]]) -> Option:
    """Per reader, the error of removal before and after repair, in per cent of the variance, on held-out data."""
    names = [str(r["layer"]) for r in refits]
    bars = {"type": "bar", "barWidth": 8}

    def data(key: str) -> list[Option]:
        return [{"value": 100 * float(r[key]), "tip": _refitted(r)} for r in refits]

    return {
        "height": 26 * len(names) + 84,
        "legend": {"top": 0},
        "tooltip": {"trigger": "item"},
        "grid": [{"left": 206, "right": 30, "top": 30, "bottom": 40}],
        "xAxis": {"type": "value", "name": "error, % of the variance", "nameLocation": "middle", "nameGap": 24},
        "yAxis": {"type": "category", "inverse": True, "data": names, "axisTick": {"show": False},
                  "axisLabel": NAMES},
        "series": [{**bars, "name": "without repair", "data": data("before"), "itemStyle": {"color": GONE,
                    "decal": HATCHED}},
                   {**bars, "name": "with repair", "data": data("after"), "itemStyle": {"color": KEPT}}],
    }  # fmt: skip


def mask_curves(history: Sequence[Mapping[str, Mapping[str, float | None]]]) -> dict[str, Option]:
    """By metric of the masks, a line for each layer."""
    found = {}
    for metric in MASK_METRICS:
        layers = list(history[0].get(metric, ())) if history else []
        if layers:
            lines = {name: [epoch.get(metric, {}).get(name) for epoch in history] for name in layers}
            found[metric] = curve(lines, "epochs of drawing done", MASK_NAMES[metric])
    return found


MASK_NAMES = {
    "confidence": "confidence",
    "diversity": "diversity, nats",
    "flips": "share that the next draw replaces",
    "entropy": "entropy of a row, nats",
    "keep_probability": "chance of what is likeliest kept",
}


def _called(step: StepRecord) -> str:
    return step.name if step.kind != "junction" else f"({step.name})"


def _narrowed(step: StepRecord) -> str:
    return f"{step.before} \N{RIGHTWARDS ARROW} {step.left}"


def _bend(distance: int) -> float:
    """Curveness of an edge over so many rows, to the left and no further than `SWING`."""
    return 0.0 if distance == 1 else -min(0.5, 2 * SWING / (ROW * distance))


def _told(step: StepRecord) -> list[str]:
    lines = [f"{step.name} ({step.kind})"]
    if step.before:
        lines.append(f"units: {step.before} before, {step.left} after")
    lines += [f"groups: {', '.join(step.groups)}"] if step.groups else []
    lines += [f"locked: {step.locked}"] if step.locked else []
    return [*lines, step.source] if step.source else lines


def _refitted(refit: Mapping[str, Any]) -> list[str]:
    told = f"error {100 * refit['before']:.3g} % without, {100 * refit['after']:.3g} % with repair"
    won = f"wins back {100 * refit.get('won_back', 0):.1f} %"
    reason = [f"left as it was: {refit['reason']}"] if refit.get("reason") else [won]
    return [str(refit["layer"]), told, *reason, f"{refit.get('samples', 0):,} rows fitted"]
