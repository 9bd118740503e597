"""Data movement: the operation itself is executed on the labels, along the dimensions where they vary."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from prunus.graph.engine import (
    Engine,
    Result,
    argument,
    example_size,
    meta_shape,
    meta_value,
    operation,
    rule,
)
from prunus.graph.labels import Value, along, owned, squeeze_constant, varying_dims, view_plane


@rule(
    "view", "reshape", "flatten", "unflatten", "_unsafe_view", "view_as", "reshape_as", "squeeze", "unsqueeze",
    rows=True,
)  # fmt: skip
def view(engine: Engine, node: fx.Node) -> Result:
    """A change of shape without change of order. A split of a labelled dimension demands equal counts per row."""
    source = engine.value(node.args[0])
    shape = meta_shape(node.meta["val"])
    if source.parameter is not None and shape == source.shape:
        return source
    rows = [view_plane(plane, source.shape, shape) for plane in source.rows]
    planes = []
    for plane in source.planes:
        moved = view_plane(plane, source.shape, shape)
        if engine.is_free(plane) and [s for s in moved.shape if s > 1] != [s for s in plane.shape if s > 1]:
            continue  # the same everywhere along what is now a part of a dimension
        if len(varying_dims(moved)) > len(varying_dims(plane)):
            _split_grid(engine, moved, rows, node)
        planes.append(moved)
    return Value(shape, planes, rows=rows)


def _split_grid(engine: Engine, plane: Tensor, rows: list[Tensor], node: fx.Node) -> None:
    """Equal counts in every row; and whole rows become units of their own, which the parameters behind learn of."""
    why = f"split into {tuple(plane.shape)} by {operation(node)}"
    engine.grids.append((plane, why))
    dims = varying_dims(plane)
    for number, dim in enumerate(dims[:-1]):
        found = next((r for r in rows if owned(r) == dim), None)
        if found is None:
            inside = dims[: number + 1]
            found = engine.new_rows([plane.shape[d] if d in inside else 1 for d in range(plane.dim())])
            rows.append(found)
            if number:
                engine.grids.append((found, why))
        engine.adopt(plane.reshape(-1), found.expand(plane.shape).reshape(-1), node)


@rule("permute", "transpose", "t", "numpy_T", "movedim", "swapaxes", "mT", "adjoint", rows=True)
def permute(engine: Engine, node: fx.Node) -> Result:
    """A permutation of dimensions. Where it turns rows and columns of labels round, columns are tied over the rows:
    otherwise unequal columns would arrive in another order than they left."""
    source = engine.value(node.args[0])
    order = _order(node, source.ndim)
    planes = []
    for plane in source.planes:
        dims = [d for d in order if plane.shape[d] > 1]
        if dims != sorted(dims):
            plane = engine.labels.tie(plane, sorted(dims)[:-1])
        planes.append(plane.permute(order))
    rows = []
    for row in source.rows:
        dims = [d for d in order if row.shape[d] > 1]
        if dims != sorted(dims):
            engine.lock([row], "rows and what indexes them change places", node)
            row = row[tuple(slice(None) if d == max(dims) else slice(1) for d in range(row.dim()))]
        rows.append(row.permute(order))
    if source.parameter is not None and order == [1, 0]:  # x W^T written out
        return Value(meta_shape(node.meta["val"]), planes, source.parameter, rows, not source.transposed)
    return Value(meta_shape(node.meta["val"]), planes, rows=rows)


def _order(node: fx.Node, ndim: int) -> list[int]:
    index = torch.arange(ndim, device="cpu")
    probe = torch.empty([2 + int(i) for i in index], device="meta")
    moved = node.target(probe, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return [int(size) - 2 for size in moved.shape]


@rule("slice", "narrow", rows=True)
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
        planes += _piece(engine, plane, node)
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


def _piece(engine: Engine, part: Tensor, node: fx.Node) -> list[Tensor]:
    """The plane of a piece; a unit that would be alone in it stays, or nothing would be left of the piece."""
    whole = squeeze_constant(part)
    if varying_dims(whole):
        return [whole]
    engine.lock([part], f"alone in a piece cut by {operation(node)}", node)
    return []


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unbind", "unsafe_split", "unsafe_chunk", rows=True)
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
            engine.grids.append((plane.reshape(len(sizes), -1), f"cut into {len(sizes)} equal chunks"))
        for piece, part in zip(pieces, plane.split(sizes, dim), strict=True):
            piece += _piece(engine, part, node)
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


@rule("getitem", rows=True)
def getitem(engine: Engine, node: fx.Node) -> Result:
    """One element of a tuple of results."""
    result = engine.values[node.args[0]]  # type: ignore[index]
    return result[node.args[1]] if isinstance(result, list) else result  # type: ignore[index]


@rule("select", rows=True)
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


@rule("cat", "concat", "concatenate", rows=True)
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


@rule("stack", rows=True)
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


@rule("pad", "constant_pad_nd")
def pad(engine: Engine, node: fx.Node) -> Result:
    """Padding: along a labelled dimension padded positions are new units (zero-padded shortcuts), cut off ones end."""
    source = engine.value(node.args[0])
    amounts = [int(a) for a in argument(node, 1, "pad")]
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
            planes += _piece(engine, plane, node)
            break
        else:
            planes.append(plane)
    return Value(meta_shape(node.meta["val"]), planes)


@rule("view_as_complex", rows=True)
def view_as_complex(engine: Engine, node: fx.Node) -> Result:
    """Pairs of numbers become one complex number: the two go together."""
    source = engine.value(node.args[0])
    last = source.ndim - 1
    rows = [r for r in source.rows if r.shape[last] == 1]
    engine.lock([r for r in source.rows if r.shape[last] > 1], "rows taken for complex numbers", node)
    planes = [engine.labels.tie(p, [last]).squeeze(last) for p in source.planes]
    return Value(meta_shape(node.meta["val"]), planes, rows=[r.squeeze(last) for r in rows])


@rule("view_as_real", rows=True)
def view_as_real(engine: Engine, node: fx.Node) -> Result:
    """A complex number becomes a pair of numbers."""
    source = engine.value(node.args[0])
    planes, rows = ([p.unsqueeze(-1) for p in kind] for kind in (source.planes, source.rows))
    return Value(meta_shape(node.meta["val"]), planes, rows=rows)


FILLS = {"zeros": 0, "ones": 0, "full": 0, "new_zeros": 1, "new_ones": 1, "new_full": 1}
"""Operations that make a tensor the same everywhere, and which argument its shape is."""


@rule(*FILLS, rows=True)
def fill(engine: Engine, node: fx.Node) -> Result:
    """There can be less of what is the same everywhere: it takes the units of what it meets."""
    shape = meta_shape(node.meta["val"])
    given = node.args[FILLS[operation(node)]]
    batch = {d for d, s in enumerate(given) if isinstance(s, fx.Node) and operation(s) == "sym_size"}  # type: ignore[union-attr,arg-type]
    sizes = [(d, size) for d, size in enumerate(shape) if size > 1 and d not in batch]
    return Value(shape, [along(engine.new_free(size), dim, len(shape)) for dim, size in sizes])


@rule("empty", "arange", "rand", "randn", "eye", "linspace", "scalar_tensor", "new_empty", "sym_size",
      "_assert_async", "_assert_scalar")  # fmt: skip
def create(engine: Engine, node: fx.Node) -> Result:
    """A tensor made in the graph: its size is a constant of the code, so nothing along it varies."""
    return meta_value(node.meta.get("val"))


def unknown(engine: Engine, node: fx.Node) -> Result:
    """No rule: every unit that comes near stays."""
    for operand in node.all_input_nodes:
        values = engine.values[operand]
        for value in values if isinstance(values, list) else [values]:
            engine.lock(value.planes, f"no rule for {operation(node)}", node, whole=not value.rows)
    return meta_value(node.meta.get("val"))
