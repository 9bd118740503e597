"""Pictures of a run: the noise of every unit in stages; masks inside weights and how they came to be."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from prunus.files.stagefile import Stage
from prunus.learning.findings import Findings, LearnedMasks, Scores
from prunus.runtime.extras import from_extra

MOST_NAMED = 20
"""Layers that a legend names at most; of more, every second, third, ... one."""


@singledispatch
def figures_of(findings: Findings) -> dict[str, bytes]:
    """The pictures of what a method found out, by name; none of findings that have nothing to show.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    return {}


@figures_of.register
def _of_units(findings: Scores) -> dict[str, bytes]:
    return draw_stages(findings.stages) if findings.stages else {}


def draw_stages(stages: Sequence[Stage]) -> dict[str, bytes]:
    """Draw `stages.png`: per group a histogram of its units' noise, and the kept counts along the chain.

    Args:
        stages: what each stage found, in order.

    Returns:
        The picture in PNG format, by name.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    groups = [(n, s.score[n], k) for s in stages for n, k in zip(s.groups, s.kept, strict=True)]
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure = _figure(3.2 * columns, 2.4 * rows + 2.6)
    halves: Any = figure.subfigures(2, 1, height_ratios=[2.4 * rows, 2.6])
    upper, lower = halves
    axes = upper.subplots(rows, columns, squeeze=False).reshape(-1)
    for axis, (name, scores, kept) in zip(axes, groups, strict=False):
        axis.hist(scores, bins=30, color="#3b6ea5")
        ordered = sorted(scores, reverse=True)
        if kept < len(ordered):
            axis.axvline((ordered[kept - 1] + ordered[kept]) / 2, color="#c0392b", linewidth=1.2)
        axis.set_title(f"{name}: {kept} of {len(ordered)}", fontsize=9)
        axis.set_yscale("symlog", linthresh=1)
        axis.tick_params(labelsize=7)
    for axis in axes[len(groups) :]:
        axis.axis("off")
    upper.supxlabel("score of a unit; right of the line stays", fontsize=8)
    chain = lower.subplots()
    shares = [100 * kept / len(scores) for _, scores, kept in groups]
    chain.bar(range(len(groups)), shares, color="#3b6ea5")
    chain.set_xticks(range(len(groups)), [name for name, _, _ in groups], rotation=45, ha="right", fontsize=7)
    chain.set_ylabel("units kept, %", fontsize=8)
    chain.set_ylim(0, 100)
    return {"stages.png": _png(figure)}


@figures_of.register
def draw_masks(masked: LearnedMasks) -> dict[str, bytes]:
    """Draw `masks.png` (what each layer keeps) and `learning.png` (metrics and loss by epoch).

    Args:
        masked: what was learned.

    Returns:
        The pictures in PNG format, by name.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    columns = min(3, len(masked.masks))
    rows = -(-len(masked.masks) // columns)
    figure = _figure(4.2 * columns, 3.0 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axis, (name, mask) in zip(axes, masked.masks.items(), strict=False):
        inside = masked.layouts[name].spread(mask)
        picture = inside.expand(masked.layouts[name].form.filters, *inside.shape[1:]).flatten(1).float()
        axis.imshow(picture.numpy(), aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=1)
        axis.set_title(f"{name}: {masked.layouts[name].pattern}, {int(mask.sum()):,} kept", fontsize=9)
        axis.set_xlabel("input" if inside[0, 0].numel() == 1 else "input x tap", fontsize=8)
        axis.set_ylabel("output", fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in axes[len(masked.masks) :]:
        axis.axis("off")
    pictures = {"masks.png": _png(figure)}
    if masked.history:
        pictures["learning.png"] = _png(_learning(masked))
    return pictures


def _learning(masked: LearnedMasks) -> Any:
    figure = _figure(11.0, 5.2)
    axes = figure.subplots(2, 3).reshape(-1)
    titles = {
        "entropy": "entropy of a row, nats",
        "confidence": "confidence (1: k elements share the mass)",
        "diversity": "diversity of the rows, nats",
        "keep_probability": "chance of what is likeliest kept",
        "flips": "kept that the next draw replaces",
        "loss": "training loss of drawn masks",
    }
    history, names = masked.history, list(masked.masks)
    colors = _colors(len(names))
    for axis, (field, title) in zip(axes, titles.items(), strict=True):
        if field == "loss":
            axis.plot(range(len(history)), [e.loss for e in history], marker=".", color="black")
        else:
            for name, color in zip(names, colors, strict=True):
                values = [getattr(e, field)[name] for e in history]
                axis.plot(range(len(history)), values, marker=".", label=name, color=color)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("epochs of drawing done", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.tick_params(labelsize=7)
    lines, every = axes[0].get_lines(), -(-len(names) // MOST_NAMED)
    figure.legend(lines[::every], names[::every], fontsize=7, loc="outside right center")
    return figure


def _colors(count: int) -> list[Any]:
    """Colours that differ; of many layers, from dark for the first to light for the last."""
    import matplotlib

    if count <= 10:
        return list(matplotlib.colormaps["tab10"].colors[:count])  # type: ignore[attr-defined]
    return [matplotlib.colormaps["viridis"](i / (count - 1)) for i in range(count)]


def _figure(width: float, height: float) -> Any:
    return from_extra("matplotlib.figure", "figures", "figures").Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
