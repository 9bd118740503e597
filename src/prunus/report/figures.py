"""Pictures of a run in stages: the noise of every unit, and what stayed along the chain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunus.errors import MissingDependencyError
from prunus.recursive import Stage


def draw_stages(stages: Sequence[Stage], folder: Path) -> list[Path]:
    """Write `stages.png`: per group a histogram of its units' noise, and the kept counts along the chain.

    Args:
        stages: what each stage found, in order.
        folder: where to; made if it is not there.

    Returns:
        The files written.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "figures", "matplotlib is not installed", "pip install 'prunus[figures]'"
        ) from error
    groups = [(n, s.importance[n], k) for s in stages for n, k in zip(s.groups, s.kept, strict=True)]
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows + 2.6), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[2.4 * rows, 2.6])
    upper, lower = halves
    axes = upper.subplots(rows, columns, squeeze=False).reshape(-1)
    for axis, (name, importance, kept) in zip(axes, groups, strict=False):
        axis.hist(importance, bins=30, color="#3b6ea5")
        ordered = sorted(importance, reverse=True)
        if kept < len(ordered):
            axis.axvline((ordered[kept - 1] + ordered[kept]) / 2, color="#c0392b", linewidth=1.2)
        axis.set_title(f"{name}: {kept} of {len(ordered)}", fontsize=9)
        axis.set_yscale("symlog", linthresh=1)
        axis.tick_params(labelsize=7)
    for axis in axes[len(groups) :]:
        axis.axis("off")
    upper.supxlabel("importance of a unit (root mean square of its noise); right of the line stays", fontsize=8)
    chain = lower.subplots()
    shares = [100 * kept / len(importance) for _, importance, kept in groups]
    chain.bar(range(len(groups)), shares, color="#3b6ea5")
    chain.set_xticks(range(len(groups)), [name for name, _, _ in groups], rotation=45, ha="right", fontsize=7)
    chain.set_ylabel("units kept, %", fontsize=8)
    chain.set_ylim(0, 100)
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / "stages.png", folder / "stages.part.png"
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)
    return [path]
