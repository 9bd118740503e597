"""docs/support.md from the rows of the zoo: the last row of every model and engine counts."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "docs" / "support.md"
HEAD = """# What works: the zoo

Made by `python benchmarks/zoo.py` (rows in `benchmarks/results/zoo.jsonl`, each with its commit); do not edit by hand.
Every model has random weights. Half of the units of every group that may go without asking is removed at random;
*proven* means: the smaller model's outputs equal those of the dense one with the removed units masked, on the example
inputs and on random ones, differ from the dense one's, and a backward pass runs. *artifact*: saved, loaded without the
model's code, equal outputs. *ONNX*: exported, run in ONNX Runtime, equal outputs. Torch-Pruning is called as its README
says (ratio 0.5, the last linear layer ignored); *runs* says that forward and backward ran and parameters went, nothing
about the outputs.
"""


def write_table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the page; returns its summary."""
    text, summary = page(rows)
    TARGET.write_text(text)
    return summary


def page(rows: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The page and its summary."""
    last = {(r["name"], r["engine"]): r for r in rows}
    mine = {n: r for (n, e), r in last.items() if e == "prunus"}
    theirs = {n: r for (n, e), r in last.items() if e == "torch-pruning"}
    summary = _summary(mine, theirs)
    columns = [
        "model", "result", "groups", "heads", "parameters left", "own class", "artifact", "ONNX", "seconds",
        "Torch-Pruning",
    ]  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for name, row in mine.items():
        rival = theirs.get(name, {})
        proven = row["status"] == "proven"
        cells = [
            name,
            row["status"] + (f": {_short(row['why'])}" if row.get("why") else ""),
            f"{row.get('groups', '-')} of {row.get('of', '-')}",
            str(row.get("heads", "-")),
            f"{100 * row['params']:.0f} %" if proven else "-",
            ("no" if row["rewritten"] else "yes") if proven else "-",
            _mark(row, "artifact"),
            _mark(row, "onnx"),
            f"{row['seconds']:.1f}" if proven else "-",
            rival.get("status", "-") + (f" ({100 * rival['params']:.0f} %)" if "params" in rival else ""),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return HEAD + "\n" + summary + "\n\n" + "\n".join(lines) + "\n", summary


def _summary(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    lines = ["| family | models | proven | refused | nothing prunable | wrong, hang, crash | Torch-Pruning runs |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for family in ("trap", "timm", "transformers", ""):
        own = {n: r for n, r in mine.items() if n.startswith(family)}
        counts = Counter(r["status"] for r in own.values())
        bad = sum(counts[k] for k in ("wrong", "hang", "crash"))
        rivals = [theirs[n]["status"] for n in own if n in theirs]
        lines.append(
            f"| {family or 'all'} | {len(own)} | {counts['proven']} | {counts['refused']} | "
            f"{counts['nothing prunable']} | {bad} | {rivals.count('runs')} of {len(rivals)} |"
        )
    ratios = [r["analysis_seconds"] / r["export_seconds"] for r in mine.values() if "analysis_seconds" in r]
    if len(ratios) > 1:
        low, middle, high = statistics.quantiles(ratios, n=4)
        took = f"Capture, groups, plan and surgery (proof apart) took {middle:.2f} times the bare `torch.export` call"
        lines += ["", f"{took} in the median (quartiles {low:.2f} to {high:.2f})."]
    kept = [r for r in mine.values() if r["status"] == "proven"]
    tried = [[bool(r[k]) for r in kept if k in r] for k in ("artifact", "onnx")]
    done = [f"{sum(t)} of {len(t)}" for t in tried]
    lines += [
        "",
        f"{done[0]} proven models that were saved came back from their artifact, {done[1]} exported ones from ONNX.",
    ]
    return "\n".join(lines)


def _mark(row: dict[str, Any], key: str) -> str:
    return {True: "yes", False: "no"}.get(row.get(key), "-")  # type: ignore[arg-type]


def _short(text: str) -> str:
    line = " ".join(str(text).split())
    return (line[:150] + " ...").replace("|", "/") if len(line) > 150 else line.replace("|", "/")
