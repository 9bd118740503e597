"""One-screen tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from rich import box, filesize
from rich.markup import escape
from rich.table import Table

from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.graph.shallower import without_blocks
from prunus.plan.cost import CostModel
from prunus.plan.outlook import Prospect
from prunus.plan.resources import RESOURCES

REASON = 60
"""Letters of a reason that a row of a table has room for."""


def prunability(graph: Graph) -> Table:
    """What can be pruned, what is locked, why."""
    table = Table(title=f"{escape(graph.model)}: what may be removed", title_justify="left", pad_edge=False)
    for name, justify in (("group", "left"), ("units", "right"), ("MACs/unit", "right"), ("status", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    costs = CostModel(graph)
    dense = costs.dense()
    for group in graph.groups(locked=True):
        rows = f", equal counts in {group.multiple} rows" if group.rows is not None else ""
        if group.prunable:
            status = f"[green]prunable{' if asked' if group.inside_heads else ''}[/green]{rows}"
        elif group.locked is None:
            status = "[yellow]inexact[/yellow], if asked: a normalisation takes statistics across the units"
        else:
            status = f"[yellow]locked[/yellow]: {escape(group.locked)}"
        table.add_row(escape(group.name), str(group.units), _per_unit(costs, dense.macs, group), status)
    for group in graph.experts:
        rows = f", equal counts in {group.multiple} groups" if group.rows is not None else ""
        status = f"[green]prunable if asked[/green]: --allow experts{rows}"
        if group.locked is not None:
            status = f"[yellow]locked[/yellow]: {escape(group.locked)}"
        table.add_row(escape(group.name), f"{group.units} experts", _per_unit(costs, dense.macs, group), status)
    for block in graph.blocks.free:
        fewer = CostModel(without_blocks(graph, [block.name])).dense()
        status = "[green]prunable if asked[/green]: --allow blocks"
        table.add_row(escape(block.name), "block", f"{dense.macs - fewer.macs:,}", status)
    free = sum(g.units for g in graph.groups() if not g.inside_heads)
    total = sum(g.units for g in graph.groups(locked=True))
    table.caption = f"{free} of {total} units can go; {dense.macs:,} MACs, {dense.params:,} parameters"
    table.caption_justify = "left"
    return table


def _per_unit(costs: CostModel, dense: int, group: ChannelGroup) -> str:
    """MACs that one unit less saves, of so many."""
    fewer = costs.at(costs.counts({group.name: group.units - group.multiple}))
    return f"{(dense - fewer.macs) // group.multiple:,}"


def prospects_table(graph: Graph, prospects: Sequence[Prospect], width: float) -> Table:
    """What each target would leave; `width` is the number of bytes of a parameter, which may be an average."""
    table = Table(title=f"{escape(graph.model)}: what each target would leave", title_justify="left", pad_edge=False)
    table.add_column("target", no_wrap=True)
    for column in ("MACs", "", "parameters", "", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    dense = CostModel(graph).dense()
    rows = [("dense", dense), *((p.target, p.cost) for p in prospects)]
    for name, cost in rows:
        if cost is None:
            table.add_row(escape(name), "out of reach")
            continue
        shares = (f"{100 * cost.macs / (dense.macs or 1):.1f} %", f"{100 * cost.params / (dense.params or 1):.1f} %")
        size = filesize.decimal(round(width * cost.params))
        table.add_row(escape(name), f"{cost.macs:,}", shares[0], f"{cost.params:,}", shares[1], size)
    refusals = list(dict.fromkeys(p.refusal for p in prospects if p.refusal))
    table.caption = "the same share of every group, before it is known what each is worth" + (
        f"; out of reach: {escape(refusals[0])}" if refusals else ""
    )
    table.caption_justify = "left"
    return table


def masks_table(summary: Mapping[str, Any]) -> Table:
    """What each layer keeps inside its weight, in how many bytes, and how sure the masks are; fits 80 columns."""
    table = Table(title=escape(f"{summary['model']} on {summary['data']}"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("layer", overflow="fold")
    for column in ("kept", "share", "stored", "confidence", "diversity", "flips"):
        table.add_column(column, justify="right", no_wrap=True)
    layers = summary["layers"]
    for name, layer in layers.items():
        sure = [layer[key] for key in ("confidence", "diversity", "flips")]
        table.add_row(
            escape(name),
            f"{layer['kept']:,}",
            f"{100 * layer['kept'] / layer['weights']:.1f} %",
            filesize.decimal(layer["stored_bytes"]),
            *("-" if value is None else f"{value:.2f}" for value in sure),
        )
    stored, dense = (sum(layer[key] for layer in layers.values()) for key in ("stored_bytes", "dense_bytes"))
    table.caption = f"{filesize.decimal(stored)} with all indices, {filesize.decimal(dense)} dense"
    table.caption_justify = "left"
    return table


def result_tables(summary: Mapping[str, Any]) -> list[Table]:
    """What changed, from a summary; before it, of masks inside weights, what they keep."""
    return [*([masks_table(summary)] if summary.get("layers") else []), before_and_after(summary)]


def before_and_after(summary: Mapping[str, Any]) -> Table:
    """Accuracy or agreement, parameters, MACs and latency before and after, from a `compress` summary."""
    table = Table(
        title=escape(f"{summary['model']} on {summary['data']}: {summary['asked']}"),
        title_justify="left",
        pad_edge=False,
    )
    for name in ("", "before", "after", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    for row in changes(summary):
        table.add_row(*map(escape, row))
    return table


def changes(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What changed, row by row: what it is, before, after, and how the two compare; what was not measured has no row.

    Args:
        summary: of `compress`.
    """
    found = _judged(summary)
    before, after = summary["before"], summary["after"]
    for name, resource in RESOURCES.items():
        if resource.label and name in before and name in after:
            a, b = before[name], after[name]
            share = f"{100 * b / a:.1f} %" if a else ""
            found.append((resource.label, resource.describe(a), resource.describe(b), share))
    speed = summary.get("speed", {})
    return [*found, *(_latency(times, speed["batch_size"]) for times in speed.get("modes", ()))]


def _judged(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """By what networks were judged on each split, and the loss on the last word's."""
    metric = summary.get("metric", {"name": "accuracy", "unit": "%"})
    measure, lost = ("agreement", "divergence") if "agreement" in summary else (metric["name"], "loss")
    loss, unit = summary.get("loss", {}), metric["unit"]
    scores = loss if measure == "loss" else summary.get(measure, {})
    ends = [stage for stage in ("recovered", "masked") if stage in scores]
    ends += sorted((s for s in ("batch_norm", "one_shot") if s in scores and s in loss), key=loss.__getitem__)
    found: list[tuple[str, str, str, str]] = []
    losses: list[tuple[str, str, str, str]] = []
    for split, old, new in (("test", "dense_test", "test"), ("validation", "dense", ends[0] if ends else "")):
        if old in scores and new in scores and measure != "loss":
            was, now = scores[old], scores[new]
            shown = (f"{was:.2f} %", f"{now:.2f} %", f"{now - was:+.2f} points")
            if unit != "%":
                shown = (f"{was:.4g} {unit}".strip(), f"{now:.4g} {unit}".strip(), f"{now - was:+.4g} {unit}".strip())
            found.append((f"{split} {measure}", *shown))
        if old in loss and new in loss and (split == "test" or measure == "loss" or not losses):
            change = loss[new] - loss[old]
            losses.append((f"{split} {lost}", f"{loss[old]:.4f}", f"{loss[new]:.4f}", f"{change:+.4f}"))
    return [*found, *losses]


def _latency(times: Mapping[str, Any], batch_size: int) -> tuple[str, str, str, str]:
    label = f"latency, {times['mode']}, batch {batch_size}"
    if times.get("ratio") is None:
        return label, "-", "-", f"not measured: {shorten(times['reason'], REASON, placeholder=' ...')}"
    # Runs of earlier releases have no least time.
    before, after = (f"{times[when].get('least', times[when]['median']):.3f} ms" for when in ("before", "after"))
    faster = 1 / times["ratio"]
    return label, before, after, f"{faster:.2f}x faster" if faster >= 1 else f"{times['ratio']:.2f}x slower"
