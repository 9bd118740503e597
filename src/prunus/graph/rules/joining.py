"""Tensors side by side, and padding: labels are put side by side too."""

from __future__ import annotations

import torch
from torch import fx

from prunus.graph.engine import Engine, Result, argument, example_size, meta_shape, operation
from prunus.graph.labels import Value, along, varying_dims
from prunus.graph.registry import rule
from prunus.graph.resizing import Resizing
from prunus.graph.rules.pieces import piece_of
from prunus.graph.zeros import joined, stacked


@rule("cat", "concat", "concatenate", rows=True, zeros=joined, ignores_zeros=True)
def cat(engine: Engine, node: fx.Node) -> Result:
    """Concatenation: labels are concatenated along the dimension and united along the others."""
    operands = [engine.value(n) for n in argument(node, 0, "tensors")]
    shape = meta_shape(node.meta["val"])
    dim = int(argument(node, 1, "dim", 0)) % len(shape)
    operands = [o for o in operands if o.ndim == len(shape)]
    others = [
        Value((*o.shape[:dim], 1, *o.shape[dim + 1 :]), [p for p in o.planes if p.shape[dim] == 1]) for o in operands
    ]
    for operand, other in zip(operands, others, strict=True):
        engine.lock([r for r in operand.rows if r.shape[dim] > 1], "whole rows are concatenated", node)
        other.rows = [r for r in operand.rows if r.shape[dim] == 1]
    merged = engine.combine(others, (*shape[:dim], 1, *shape[dim + 1 :]), node)
    planes, rows = merged.planes, merged.rows
    if any(o.varying(dim) for o in operands):
        lines = []
        for operand in operands:
            labels = engine.parameter_plane(operand, dim)
            if labels is None:
                labels = engine.fixed(operand.shape[dim], "concatenated from a tensor of fixed size", node)
            lines.append(labels)
        planes.append(along(torch.cat(lines), dim, len(shape)))
    return Value(shape, planes, rows=rows)


@rule("stack", rows=True, zeros=stacked, ignores_zeros=True)
def stack(engine: Engine, node: fx.Node) -> Result:
    """Tensors side by side along a new dimension: their units are united."""
    operands = [engine.value(n) for n in argument(node, 0, "tensors")]
    shape = meta_shape(node.meta["val"])
    dim = int(argument(node, 1, "dim", 0)) % len(shape)
    apart = [
        Value(
            (*o.shape[:dim], 1, *o.shape[dim:]),
            [p.unsqueeze(dim) for p in o.planes],
            rows=[r.unsqueeze(dim) for r in o.rows],
        )
        for o in operands
    ]
    merged = engine.combine(apart, (*shape[:dim], 1, *shape[dim + 1 :]), node)
    return Value(shape, merged.planes, rows=merged.rows)


def _padding(call: Resizing) -> None:
    """`(input, amounts, ...)`: new positions that stay, and of those cut off the ones that would have."""
    before, after = call.before, call.after
    if before is None or after is None:
        return
    amounts = list(call.arguments[1])
    for dim in range(before.ndim):
        position = 2 * (before.ndim - 1 - dim)
        stays, had = call.line(after, dim), call.line(before, dim)
        if stays is None or had is None or position >= len(amounts):
            continue
        amounts[position], amounts[position + 1] = (
            int(stays[:n].sum()) if n >= 0 else -int(had[:-n].sum())
            for n, stays, had in (
                (amounts[position], stays, had),
                (amounts[position + 1], stays[::-1], had[::-1]),
            )
        )
    call.arguments[1] = amounts


@rule("pad", "constant_pad_nd", rewrite=_padding, ignores_zeros=True)
def pad(engine: Engine, node: fx.Node) -> Result:
    """Padding: along a labelled dimension padded positions are new units (zero-padded shortcuts), cut off ones end."""
    source = engine.value(node.args[0])
    amounts = [example_size(a) if isinstance(a, fx.Node) else int(a) for a in argument(node, 1, "pad")]
    constant = argument(node, 2, "mode", "constant") == "constant" or operation(node) == "constant_pad_nd"
    planes = []
    for plane in source.planes:
        for dim in varying_dims(plane):
            position = 2 * (source.ndim - 1 - dim)
            before, after = amounts[position : position + 2] if position < len(amounts) else (0, 0)
            if not before and not after:
                continue
            if not constant or len(varying_dims(plane)) > 1:
                engine.lock([plane], "padded along its units in a way that has no rule", node)
                break
            new = [along(engine.labels.fresh(max(n, 0)), dim, source.ndim) for n in (before, after)]
            left = plane.shape[dim] + min(before, 0) + min(after, 0)
            plane = torch.cat([new[0], plane.narrow(dim, max(-before, 0), left), new[1]], dim)
            planes += piece_of(engine, plane, node)
            break
        else:
            planes.append(plane)
    return Value(meta_shape(node.meta["val"]), planes)
