"""Look-ups by index: along the indexed dimension units stay, unless the index is known; along all others they pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from prunus.graph.engine import Engine, Result, argument, example_size, meta_shape, operation
from prunus.graph.labels import Value, varying_dims
from prunus.graph.registry import rule
from prunus.graph.resizing import Resizing, position_after
from prunus.graph.rules.selecting import CHOSEN, selected_by


@rule("index", rows=True)
def index(engine: Engine, node: fx.Node) -> Result:
    """Positions looked up by index tensors stay, unless one known index selects them; other labels pass."""
    source = engine.value(node.args[0])
    indices: list[Any] = list(node.args[1])  # type: ignore[arg-type]
    given = [d for d, entry in enumerate(indices) if entry is not None]
    if len(given) == 1:
        selected = selected_by(engine, source, given[0], indices[given[0]], node)
        if selected is not None:
            return selected
    return _looked_up(engine, source, _indexed(engine, node), meta_shape(node.meta["val"]), node)


def _indexed(engine: Engine, node: fx.Node) -> list[int]:
    """The dimensions that a list of index tensors covers (a mask of booleans covers as many as it has)."""
    indices: list[Any] = list(node.args[1])  # type: ignore[arg-type]
    dims: list[int] = []
    dim = 0
    for entry in indices:
        covers = 1
        if isinstance(entry, fx.Node):
            value = engine.value(entry)
            engine.lock([*value.planes, *value.rows], "used as indices", node)
            covers = value.ndim if entry.meta["val"].dtype in (torch.bool, torch.uint8) else 1
            dims += range(dim, dim + covers)
        dim += covers
    return dims


def _looked_up(engine: Engine, source: Value, dims: list[int], shape: tuple[int, ...], node: fx.Node) -> Value:
    if not dims:
        return Value(shape, list(source.planes), rows=list(source.rows))
    added = len(shape) - (source.ndim - len(dims))
    place = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0

    def moved(kind: list[Tensor]) -> list[Tensor]:
        found = []
        for plane in kind:
            if any(plane.shape[d] > 1 for d in dims):
                engine.lock([plane], CHOSEN, node)
                continue
            rest = [s for d, s in enumerate(plane.shape) if d not in dims]
            found.append(plane.reshape([*rest[:place], *[1] * added, *rest[place:]]))
        return found

    return Value(shape, moved(source.planes), rows=moved(source.rows))


@rule("index_put", "_index_put_impl", "_unsafe_index_put", rows=True)
def index_put(engine: Engine, node: fx.Node) -> Result:
    """Values written where index tensors point: their units are those of what they are written into."""
    source, values = engine.value(node.args[0]), engine.value(node.args[2])
    indices: list[Any] = list(node.args[1])  # type: ignore[arg-type]
    probes = [None if i is None else i.meta["val"] for i in indices]
    dims = _indexed(engine, node)
    sizes = [meta_shape(p) for p in probes if p is not None]
    spread = torch.broadcast_shapes(*sizes) if len(dims) == len(sizes) else (values.shape or (1,))[:1]
    place = dims[0] if dims and dims == list(range(dims[0], dims[-1] + 1)) else 0
    rest = [s for d, s in enumerate(source.shape) if d not in dims]
    shape = (*rest[:place], *spread, *rest[place:])
    read = _looked_up(engine, source, dims, shape, node)
    engine.combine([read, *([values] if values.shape else [])], shape, node)
    return _outside(source, dims)


def _outside(source: Value, dims: Sequence[int]) -> Value:
    """A value without what is decided along the given dimensions (it was locked)."""
    planes, rows = ([p for p in kind if all(p.shape[d] == 1 for d in dims)] for kind in (source.planes, source.rows))
    return Value(source.shape, planes, rows=rows)


@rule("gather", "take_along_dim", rows=True)
def gather(engine: Engine, node: fx.Node) -> Result:
    """out[.., i, ..] = input[.., index[.., i, ..], ..] along one dimension; along the others index and input go
    side by side, position by position."""
    source, where = (engine.value(n) for n in node.all_input_nodes[:2])
    dim = argument(node, 1 if operation(node) == "gather" else 2, "dim")
    if dim is None:
        engine.lock([*source.planes, *source.rows, *where.planes, *where.rows], CHOSEN, node)
        return Value(meta_shape(node.meta["val"]))
    dim = int(dim) % max(source.ndim, 1)
    shape = meta_shape(node.meta["val"])
    return _beside(engine, [source, where], dim, shape, node)


@rule("scatter", "scatter_add", "scatter_reduce", rows=True)
def scatter(engine: Engine, node: fx.Node) -> Result:
    """out[.., index[.., i, ..], ..] = source[.., i, ..] along one dimension."""
    operands = [engine.value(n) for n in node.all_input_nodes if engine.value(n).shape]
    into = operands[0]
    dim = int(argument(node, 1, "dim")) % into.ndim
    found = _beside(engine, operands, dim, into.shape, node)
    return Value(into.shape, found.planes, rows=found.rows)


@rule("index_add", "index_copy", "index_reduce", "index_fill", rows=True)
def index_along(engine: Engine, node: fx.Node) -> Result:
    """Slices of a source added or copied into the indexed slices of one dimension."""
    into = engine.value(node.args[0])
    dim = int(argument(node, 1, "dim")) % max(into.ndim, 1)
    chosen = engine.value(node.args[2])
    engine.lock([*chosen.planes, *chosen.rows], "used as indices", node)
    others = [engine.value(n) for n in node.args[3:4] if isinstance(n, fx.Node)]
    operands = [into, *(o for o in others if o.ndim == into.ndim)]
    return _beside(engine, operands, dim, into.shape, node)


def _beside(engine: Engine, operands: Sequence[Value], dim: int, shape: tuple[int, ...], node: fx.Node) -> Value:
    """Operands side by side along all dimensions but one, along which they are indexed and units stay.

    Where one is longer than the others in another dimension, its first positions alone are met: units there stay.
    """
    apart = []
    for operand in operands:
        if operand.ndim != len(shape):
            engine.lock([*operand.planes, *operand.rows], CHOSEN, node)
            continue
        stays: list[Tensor] = []
        for plane in (*operand.planes, *operand.rows):
            uneven = any(operand.shape[d] not in (1, shape[d]) for d in varying_dims(plane) if d != dim)
            if uneven or plane.shape[dim] > 1:
                stays.append(plane)
        engine.lock(stays, CHOSEN, node)
        kept = [[p for p in kind if not any(p is s for s in stays)] for kind in (operand.planes, operand.rows)]
        sizes = tuple(
            1 if d == dim or operand.shape[d] not in (1, shape[d]) else operand.shape[d] for d in range(len(shape))
        )
        apart.append(Value(sizes, kept[0], rows=kept[1]))
    whole = tuple(1 if d == dim else size for d, size in enumerate(shape))
    merged = engine.combine(apart, whole, node)
    return Value(shape, merged.planes, rows=merged.rows)


@rule("copy", rows=True)
def copy(engine: Engine, node: fx.Node) -> Result:
    """Written over in place: the units of what is written are those of the place, in all views of it."""
    place, source = engine.value(node.args[0]), engine.value(node.args[1])
    return engine.combine([place, source] if source.shape else [place], meta_shape(node.meta["val"]), node)


def _slice_bounds(call: Resizing) -> None:
    """`(input, source, dim=0, start=None, end=None, step=1)`."""
    stays = None if call.before is None else call.line(call.before, int(argument(call.node, 2, "dim", 0)))
    if stays is not None:
        bounds = (*call.arguments[3:5], None, None)[:2]
        call.arguments[3:5] = [position_after(position, stays) for position in bounds]


@rule("slice_scatter", rows=True, rewrite=_slice_bounds)
def slice_scatter(engine: Engine, node: fx.Node) -> Result:
    """A copy with a slice written over."""
    into, source = engine.value(node.args[0]), engine.value(node.args[1])
    dim = int(argument(node, 2, "dim", 0)) % into.ndim
    start, end = argument(node, 3, "start"), argument(node, 4, "end")
    step = argument(node, 5, "step", 1)
    start, end = (example_size(v) if isinstance(v, fx.Node) else v for v in (start, end))
    part = slice(start, end, step)

    def inside(plane: Tensor) -> Tensor:
        return plane[(slice(None),) * dim + (part,)] if plane.shape[dim] > 1 else plane

    place = Value(source.shape, [inside(p) for p in into.planes], rows=[inside(p) for p in into.rows])
    engine.combine([place, source], source.shape, node)
    return Value(into.shape, list(into.planes), rows=list(into.rows))


@rule("select_scatter", rows=True)
def select_scatter(engine: Engine, node: fx.Node) -> Result:
    """A copy with one index of a dimension written over; units along that dimension stay."""
    into, source = engine.value(node.args[0]), engine.value(node.args[1])
    dim = int(argument(node, 2, "dim")) % into.ndim
    written = Value(
        (*source.shape[:dim], 1, *source.shape[dim:]),
        [p.unsqueeze(dim) for p in source.planes],
        rows=[p.unsqueeze(dim) for p in source.rows],
    )
    return _beside(engine, [into, written], dim, into.shape, node)


@rule("nonzero", "nonzero_numpy", "argwhere", "masked_select", "unique_consecutive", "_unique2", rows=True)
def found(engine: Engine, node: fx.Node) -> Result:
    """What a search over values finds depends on every one of them."""
    operands = [engine.value(n) for n in node.all_input_nodes]
    reason = f"{operation(node)} looks at every unit"
    engine.lock([p for o in operands for p in (*o.planes, *o.rows)], reason, node)
    meta = node.meta["val"]
    if isinstance(meta, Tensor):
        return Value(meta_shape(meta))
    return [Value(meta_shape(m)) for m in meta]
