"""Figures and tables of a comparison: accuracy against MACs with error bars, and `docs/comparison.md`.

    python benchmarks/plots.py [--name cpu]

Reads `results/compare_NAME.jsonl`, as `compare.py` wrote it. A method that has no line of a network is not shown there;
a mean tells over how many seeds it is.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from options import Parser, needs, scratch, smoking
from record import RESULTS, mean_std, provenance

DOCS = Path(__file__).resolve().parent.parent / "docs"
STAGE = "one-shot"
DEFAULT = ("dirichlet", True)
COLOURS = ("#0b5fa5", "#d1495b", "#2e7d32", "#8a5a00", "#6a4c93", "#3d5a80", "#b5651d", "#5f6368")
Row = dict[str, Any]
Way = tuple[str, bool]


def rows_of(path: Path) -> list[Row]:
    """The lines of a comparison; where a cell was run with other recoveries later, they are put together."""
    merged: dict[tuple[Any, ...], Row] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        key = tuple(row[k] for k in ("net", "target", "method", "repair", "seed"))
        merged[key] = {**row, **merged.get(key, {})}
    return list(merged.values())


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


def table(rows: list[Row]) -> str:
    """Markdown of one network at one target; the best mean of a column is bold."""
    stages = stages_of(rows)
    columns = {stage: scores(rows, stage) for stage in stages}
    best = {stage: max(map(statistics.mean, found.values())) for stage, found in columns.items() if found}
    ways = sorted({w for found in columns.values() for w in found}, key=lambda w: -statistics.mean(
        columns[STAGE].get(w, [0.0])))  # fmt: skip
    lines = [f"| method | {' | '.join(stages)} | cost of pruning | seeds |", "|---|" + "---|" * (len(stages) + 2)]
    for way in ways:
        own = [r for r in rows if (r["method"], r["repair"]) == way]
        cells = []
        for stage in stages:
            values = columns[stage].get(way, [])
            text = mean_std(values) if values else ""
            cells.append(f"**{text}**" if values and statistics.mean(values) == best[stage] else text)
        cost = statistics.mean(r["pruning_cost"] for r in own)
        lines.append(f"| {named(way)} | {' | '.join(cells)} | {cost:,.0f} | {len(own)} |")
    return "\n".join(lines)


def verdict(rows: list[Row]) -> str:
    """Whether the default is first in every column, by how much, and by how many pooled standard deviations."""
    told = []
    for stage in stages_of(rows):
        found = scores(rows, stage)
        rivals = {w: v for w, v in found.items() if w[0] != DEFAULT[0]}
        if DEFAULT not in found or not rivals:
            continue
        best = max(rivals, key=lambda w: statistics.mean(rivals[w]))
        own, others = found[DEFAULT], rivals[best]
        gap = statistics.mean(own) - statistics.mean(others)
        spread = ""
        if len(own) > 1 and len(others) > 1:
            pooled = ((statistics.variance(own) + statistics.variance(others)) / 2) ** 0.5
            spread = f", {gap / pooled:+.1f} pooled std" if pooled else ""
        told.append(f"{stage}: {gap:+.2f} points to the best other, {named(best)}{spread}")
    return "Our default (dirichlet, repaired): " + "; ".join(told) + "." if told else ""


def figure(rows: list[Row], net: str, path: Path) -> None:
    """One-shot accuracy against the share of the MACs; bars are one standard deviation over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn, axis = plt.subplots(figsize=(6.4, 4.2), dpi=120)
    ways = sorted({(r["method"], r["repair"]) for r in rows})
    for number, way in enumerate(ways):
        points = []
        for target in sorted({r["target"] for r in rows}):
            own = [r for r in rows if (r["method"], r["repair"], r["target"]) == (*way, target) and STAGE in r]
            if own:
                values = [r[STAGE]["score"] for r in own]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                points.append((100 * statistics.mean(r["macs"] for r in own), statistics.mean(values), spread))
        x, y, error = zip(*points, strict=True)
        style = "-" if way[1] else ":" if way[0].startswith("TP") else "--"
        colour = COLOURS[number // 2 % len(COLOURS)]
        axis.errorbar(x, y, error, linestyle=style, marker="o", markersize=3, linewidth=1.4, color=colour, capsize=2)
        axis.lines[-1].set_label(named(way))
    axis.axhline(statistics.mean(r["dense"] for r in rows), color="#999999", linewidth=0.8, label="dense")
    axis.set_xlabel("MACs kept, %")
    axis.set_ylabel("test accuracy, %")
    axis.set_title(f"{net}: one-shot")
    axis.legend(fontsize=6, ncols=2)
    drawn.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path)
    plt.close(drawn)


def page(rows: list[Row], name: str, figures: str) -> str:
    """The whole document."""
    commits = sorted({r["provenance"]["commit"] for r in rows})
    devices = sorted({r["provenance"]["device"] for r in rows})
    lines = [
        "# Comparison",
        "",
        "Generated by `python benchmarks/plots.py` from `benchmarks/results/compare_"
        f"{name}.jsonl`, which `python benchmarks/compare.py benchmarks/{name}.yaml --cifar DIR` wrote.",
        f"Commits {', '.join(commits)}; {'; '.join(devices)}; one thread a process.",
        "",
        "Test accuracy in %, mean ± standard deviation over seeds. Selection, allocation and repair see the same",
        "1,024 training examples; batch norms are estimated anew where the validation split is better for it; the",
        "recovery is the same for all. Cost: CPU time of pruning (for Torch-Pruning with the search for its ratio) in",
        "dense forward and backward passes of one example. ResNets: the inner channels of blocks alone, since",
        "Torch-Pruning can't follow padded shortcuts; each of its importances is the better of pruning globally and",
        "layer by layer.",
    ]
    for net in sorted({r["net"] for r in rows}):
        dense = statistics.mean(r["dense"] for r in rows if r["net"] == net)
        lines += ["", f"## {net}, dense {dense:.2f} %", "", f"![{net}]({figures}/comparison-{net}.png)"]
        for target in sorted({r["target"] for r in rows if r["net"] == net}, reverse=True):
            own = [r for r in rows if (r["net"], r["target"]) == (net, target)]
            lines += ["", f"### At {target} % of the MACs", "", table(own), "", verdict(own)]
    return "\n".join(lines).rstrip() + "\n"


def made_up() -> list[Row]:
    """A few lines for a smoke run."""
    common = {"net": "made up", "dense": 90.0, "pruning_cost": 5, "provenance": provenance()}
    return [
        {**common, "target": t, "method": m, "repair": r, "seed": s, "macs": t / 100,
         STAGE: {"score": 50.0 + t / 5 + 9 * r + s}}
        for t in (30, 50) for m in ("dirichlet", "l1") for r in (False, True) for s in (0, 1)
    ]  # fmt: skip


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--name", default="cpu", help="of the comparison")
    args = parser.parse_args()
    needs("matplotlib")
    rows = made_up() if smoking() else rows_of(RESULTS / f"compare_{args.name}.jsonl")
    docs = scratch() if smoking() else DOCS
    for net in sorted({r["net"] for r in rows}):
        figure([r for r in rows if r["net"] == net], net, docs / "figures" / f"comparison-{net}.png")
    text = page(rows, args.name, "figures")
    (docs / "comparison.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
