"""Parts of a tensor along a dimension: slices, splits, single positions. Labels are cut where the tensor is."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from prunus.graph.engine import Engine, Result, argument, example_size, meta_shape, operation
from prunus.graph.labels import Value, owned, squeeze_constant, varying_dims
from prunus.graph.registry import rule
from prunus.graph.resizing import Resizing, position_after
from prunus.graph.zeros import moved


def _slice_bounds(call: Resizing) -> None:
    """`(input, dim=0, start=None, end=None, step=1)`."""
    if call.before is None:
        return
    arguments = call.arguments
    stays = call.line(call.before, int(arguments[1]) if len(arguments) > 1 else 0)
    if stays is not None:
        start, end = (*arguments[2:4], None, None)[:2]
        strided = len(arguments) > 4 and arguments[4] != 1  # whole blocks went: the first position is what it was
        arguments[2:4] = [start if strided else position_after(start, stays), position_after(end, stays)]


def _start_and_length(call: Resizing) -> None:
    """`(input, dim, start, length)`."""
    stays = None if call.before is None else call.line(call.before, int(call.arguments[1]))
    if stays is not None and isinstance(call.arguments[2], int):
        start, length = call.arguments[2] % len(stays), call.arguments[3]
        call.arguments[2:4] = [int(stays[:start].sum()), int(stays[start : start + length].sum())]


@rule("slice", rows=True, rewrite=_slice_bounds, zeros=moved, ignores_zeros=True)
@rule("narrow", rows=True, rewrite=_start_and_length, zeros=moved, ignores_zeros=True)
def cut(engine: Engine, node: fx.Node) -> Result:
    """A slice: labels along the dimension are sliced with it."""
    source = engine.value(node.args[0])
    if source.parameter is not None and meta_shape(node.meta["val"]) == source.shape:
        return source
    dim = int(argument(node, 1, "dim", 0)) % source.ndim
    arguments = [dim, *fx.map_arg(tuple(node.args[2:]), example_size)]
    engine.lock([r for r in source.rows if r.shape[dim] > 1], "a slice cuts whole rows", node)
    if operation(node) == "slice" and argument(node, 4, "step", 1) != 1:
        source = _strided(engine, node, source, dim)
    planes = []
    for plane in source.planes:
        if plane.shape[dim] > 1:
            plane = node.target(plane, *arguments, **{k: v for k, v in node.kwargs.items() if k != "dim"})  # type: ignore[operator]
        planes += piece_of(engine, plane, node)
    rows = [r for r in source.rows if r.shape[dim] == 1]
    return Value(meta_shape(node.meta["val"]), planes, rows=rows)


def _strided(engine: Engine, node: fx.Node, source: Value, dim: int) -> Value:
    """Every n-th position: where whole blocks of n go, what stays is still every n-th; otherwise units stay."""
    start, end = argument(node, 2, "start") or 0, argument(node, 3, "end")
    size, step = source.shape[dim], int(argument(node, 4, "step"))
    whole = isinstance(start, int) and 0 <= start < step and (end is None or (isinstance(end, int) and end >= size))
    if whole:
        full = size - size % step
        for plane in source.varying(dim):
            blocks = [*plane.shape[:dim], full // step, step, *plane.shape[dim + 1 :]]
            engine.labels.tie(plane.narrow(dim, 0, full).reshape(blocks), [dim + 1])
            engine.labels.tie(plane.narrow(dim, full, size - full), [dim] if size > full else [])
        return source
    engine.lock(source.varying(dim), "a strided slice picks units by their position", node)
    return Value(source.shape, [p for p in source.planes if p.shape[dim] == 1], rows=list(source.rows))


def piece_of(engine: Engine, part: Tensor, node: fx.Node) -> list[Tensor]:
    """The plane of a piece; a unit that would be alone in it stays, or nothing would be left of the piece."""
    whole = squeeze_constant(part)
    if varying_dims(whole):
        return [whole]
    engine.lock([part], f"alone in a piece cut by {operation(node)}", node)
    return []


def _sizes_of_pieces(call: Resizing) -> None:
    """`(input, number or sizes, dim=0)`: as many of each piece as stay, whatever the code asked for."""
    if call.before is None or not isinstance(call.result, list):
        return
    dim = int(argument(call.node, 2, "dim", 0))
    if call.line(call.before, dim) is None:
        return
    counts = [call.count(v, dim) for v in call.result]
    whole = [v.shape[dim % call.before.ndim] for v in call.result]
    call.copy.target, call.copy.kwargs = torch.ops.aten.split_with_sizes.default, {}
    sizes = [w if s is None else s for s, w in zip(counts, whole, strict=True)]
    call.arguments[:] = [call.arguments[0], sizes, dim]


@rule("split", "split_with_sizes", "chunk", rows=True, rewrite=_sizes_of_pieces, zeros=moved, ignores_zeros=True)
@rule("tensor_split", "unsafe_split", "unsafe_chunk", rows=True, rewrite=_sizes_of_pieces, ignores_zeros=True)
@rule("unbind", rows=True, zeros=moved, ignores_zeros=True)
def split(engine: Engine, node: fx.Node) -> Result:
    """Pieces along a dimension. Equal chunks keep equal counts, so that the same code still splits them evenly."""
    source = engine.value(node.args[0])
    name = operation(node)
    dim = int(argument(node, 1 if name == "unbind" else 2, "dim", 0)) % source.ndim
    shapes = [meta_shape(m) for m in node.meta["val"]]
    pieces: list[list[Tensor]] = [[] for _ in shapes]
    for plane in source.planes:
        if plane.shape[dim] == 1:
            for piece, shape in zip(pieces, shapes, strict=True):
                piece.append(plane.squeeze(dim) if len(shape) < source.ndim else plane)
            continue
        if name == "unbind":
            if owned(plane) == dim:
                engine.lock([plane], "unbind takes the units apart one by one", node)
            else:
                for index, piece in enumerate(pieces):
                    piece.append(plane.select(dim, index))
            continue
        sizes = [shape[dim] for shape in shapes]
        if name in ("chunk", "unsafe_chunk") and len(set(sizes)) == 1 and plane.numel() == plane.shape[dim]:
            engine.equal_counts(plane.reshape(len(sizes), -1), f"cut into {len(sizes)} equal chunks")
        for piece, part in zip(pieces, plane.split(sizes, dim), strict=True):
            piece += piece_of(engine, part, node)
    rows = _split_rows(engine, source, dim, shapes, node)
    return [Value(s, planes, rows=r) for s, planes, r in zip(shapes, pieces, rows, strict=True)]


def _split_rows(
    engine: Engine, source: Value, dim: int, shapes: list[tuple[int, ...]], node: fx.Node
) -> list[list[Tensor]]:
    """Row planes of each piece: taken apart where the dimension only indexes them, locked where they decide on it."""
    pieces: list[list[Tensor]] = [[] for _ in shapes]
    one = len(shapes[0]) < source.ndim
    for row in source.rows:
        if owned(row) == dim:
            engine.lock([row], f"{operation(node)} takes whole rows apart", node)
            continue
        sizes = [1 if one else shape[dim] for shape in shapes]
        parts = row.split(sizes, dim) if row.shape[dim] > 1 else [row] * len(shapes)
        for piece, part in zip(pieces, parts, strict=True):
            piece.append(part.squeeze(dim) if one else part)
    return pieces


@rule("select", rows=True, zeros=moved, ignores_zeros=True)
def select(engine: Engine, node: fx.Node) -> Result:
    """One index of a dimension: if units lie along it, the chosen one can't be known to stay, so none goes."""
    source = engine.value(node.args[0])
    dim = int(argument(node, 1, "dim")) % source.ndim
    index = int(argument(node, 2, "index")) if isinstance(argument(node, 2, "index"), int) else None
    planes: list[Tensor] = []
    rows: list[Tensor] = []
    for kind, taken in ((source.planes, planes), (source.rows, rows)):
        for plane in kind:
            if plane.shape[dim] == 1:
                taken.append(plane.squeeze(dim))
            elif owned(plane) == dim or index is None:
                engine.lock([plane], "a constant index selects one unit", node)
            else:
                taken.append(plane.select(dim, index))
    return Value(meta_shape(node.meta["val"]), planes, rows=rows)
