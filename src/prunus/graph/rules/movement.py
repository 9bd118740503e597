"""Other shapes and orders of dimensions: the operation itself is executed on the labels where they vary."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from prunus.graph.engine import Engine, Result, meta_shape, operation
from prunus.graph.labels import Value, owned, varying_dims, view_plane
from prunus.graph.registry import rule
from prunus.graph.resizing import Resizing, shape_at
from prunus.graph.zeros import moved, picked, viewed


def _unflattened(call: Resizing) -> None:
    """`(input, dim, sizes)`."""
    sizes = call.arguments[2]
    if call.after is not None and isinstance(sizes, list | tuple):
        first = int(call.arguments[1]) % call.before.ndim if call.before is not None else 0
        call.arguments[2] = [call.resized(s, call.after, first + d) for d, s in enumerate(sizes)]


@rule("view", "reshape", "_unsafe_view", rows=True, rewrite=shape_at(1), zeros=viewed, ignores_zeros=True)
@rule("unflatten", rows=True, rewrite=_unflattened, zeros=viewed, ignores_zeros=True)
@rule("flatten", "view_as", "reshape_as", "squeeze", "unsqueeze", rows=True, zeros=viewed, ignores_zeros=True)
def view(engine: Engine, node: fx.Node) -> Result:
    """A change of shape without change of order. A split of a labelled dimension demands equal counts per row."""
    source = engine.value(node.args[0])
    shape = meta_shape(node.meta["val"])
    if source.parameter is not None and shape == source.shape:
        return source
    rows = [view_plane(plane, source.shape, shape) for plane in source.rows]
    planes = []
    for plane in source.planes:
        laid = view_plane(plane, source.shape, shape)
        if engine.is_free(plane) and [s for s in laid.shape if s > 1] != [s for s in plane.shape if s > 1]:
            continue  # the same everywhere along what is now a part of a dimension
        if len(varying_dims(laid)) > len(varying_dims(plane)):
            _split_grid(engine, laid, rows, node)
        planes.append(laid)
    return Value(shape, planes, rows=rows)


def _split_grid(engine: Engine, plane: Tensor, rows: list[Tensor], node: fx.Node) -> None:
    """Equal counts in every row; and whole rows become units of their own, which the parameters behind learn of."""
    why = f"split into {tuple(plane.shape)} by {operation(node)}"
    engine.equal_counts(plane, why)
    dims = varying_dims(plane)
    for number, dim in enumerate(dims[:-1]):
        row = next((r for r in rows if owned(r) == dim), None)
        if row is None:
            inside = dims[: number + 1]
            row = engine.new_rows([plane.shape[d] if d in inside else 1 for d in range(plane.dim())])
            rows.append(row)
            if number:
                engine.equal_counts(row, why)
        engine.adopt(plane.reshape(-1), row.expand(plane.shape).reshape(-1), node)


@rule("permute", "transpose", "t", "movedim", "swapaxes", rows=True, zeros=moved, ignores_zeros=True)
@rule("numpy_T", "mT", "adjoint", rows=True, ignores_zeros=True)
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
    turned = node.target(probe, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return [int(size) - 2 for size in turned.shape]


@rule("view_as_complex", rows=True, ignores_zeros=True)
def view_as_complex(engine: Engine, node: fx.Node) -> Result:
    """Pairs of numbers become one complex number: the two go together."""
    source = engine.value(node.args[0])
    last = source.ndim - 1
    rows = [r for r in source.rows if r.shape[last] == 1]
    engine.lock([r for r in source.rows if r.shape[last] > 1], "rows taken for complex numbers", node)
    planes = [engine.labels.tie(p, [last]).squeeze(last) for p in source.planes]
    return Value(meta_shape(node.meta["val"]), planes, rows=[r.squeeze(last) for r in rows])


@rule("view_as_real", rows=True, ignores_zeros=True)
def view_as_real(engine: Engine, node: fx.Node) -> Result:
    """A complex number becomes a pair of numbers."""
    source = engine.value(node.args[0])
    planes, rows = ([p.unsqueeze(-1) for p in kind] for kind in (source.planes, source.rows))
    return Value(meta_shape(node.meta["val"]), planes, rows=rows)


@rule("getitem", rows=True, zeros=picked, ignores_zeros=True)
def getitem(engine: Engine, node: fx.Node) -> Result:
    """One element of a tuple of results."""
    result = engine.values[node.args[0]]  # type: ignore[index]
    return result[node.args[1]] if isinstance(result, list) else result  # type: ignore[index]
