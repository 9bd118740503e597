"""Products of activations: matrix products, `einsum`, attention. Each is read as an `einsum` over named dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from prunus.graph.engine import Engine, Result, argument, meta_shape, operation
from prunus.graph.labels import Value, along, owned, varying_dims
from prunus.graph.registry import rule
from prunus.graph.resizing import Resizing
from prunus.graph.rules.contraction import product_with_weight, record
from prunus.graph.stored import weight_of


@dataclass
class _Named:
    """An operand whose dimensions have letters; planes and rows are laid out over all letters in one order."""

    letters: str
    sizes: dict[str, int]
    planes: list[Tensor]
    rows: list[Tensor]


@rule("matmul", "bmm", "mm", rows=True, ignores_zeros=True, sides=(0, 1))
def matmul(engine: Engine, node: fx.Node) -> Result:
    """[..., M, K] x [..., K, N], leading dimensions broadcast."""
    a, b = engine.value(node.args[0]), engine.value(node.args[1])
    if min(a.ndim, b.ndim) < 2:
        return _refused(engine, node, [a, b])
    if b.ndim == 2 and b.stored and a.stored is None:
        return product_with_weight(engine, node, a, weight_of(engine, node, b), 0, None)
    batch = "".join(chr(ord("a") + i) for i in range(max(a.ndim, b.ndim) - 2))
    first, second = batch[len(batch) - (a.ndim - 2) :] + "xk", batch[len(batch) - (b.ndim - 2) :] + "ky"
    return contract(engine, node, [(a, first), (b, second)], batch + "xy", sources=_nodes(node.args[:2]))


@rule("baddbmm", rows=True, ignores_zeros=True, sides=(1, 2))
def baddbmm(engine: Engine, node: fx.Node) -> Result:
    """A bias (a mask, positions) plus a batched matrix product."""
    bias, a, b = (engine.value(n) for n in node.args[:3])
    product = contract(engine, node, [(a, "zxk"), (b, "zky")], "zxy", sources=_nodes(node.args[1:3]))
    assert isinstance(product, Value)
    return engine.combine([bias, product], product.shape, node)


@rule("outer", "ger", rows=True, ignores_zeros=True)
def outer(engine: Engine, node: fx.Node) -> Result:
    """Every element of one vector times every element of another."""
    return contract(engine, node, [(engine.value(node.args[0]), "x"), (engine.value(node.args[1]), "y")], "xy")


@rule("einsum", rows=True, ignores_zeros=True, sides=(0, 1))
def einsum(engine: Engine, node: fx.Node) -> Result:
    """`torch.einsum` with an explicit result, without ellipsis and repeated letters."""
    equation = str(node.args[0]).replace(" ", "")
    operands = [engine.value(n) for n in node.args[1]]  # type: ignore[union-attr]
    left, arrow, right = equation.partition("->")
    parts = left.split(",")
    if not arrow or "." in equation or any(len(set(p)) < len(p) for p in (*parts, right)):
        return _refused(engine, node, operands)
    sources = _nodes(node.args[1])
    return contract(engine, node, list(zip(operands, parts, strict=True)), right, sources=sources)


def _dense_scale(call: Resizing) -> None:
    """Scores are divided by the root of the dense width, which the operation would take from what is left."""
    if call.before is not None:
        scale = call.copy.kwargs.get("scale") or call.before.shape[-1] ** -0.5
        call.copy.kwargs = {**call.copy.kwargs, "scale": scale}


@rule("scaled_dot_product_attention", rows=True, rewrite=_dense_scale, ignores_zeros=True)
def attention(engine: Engine, node: fx.Node) -> Result:
    """softmax(q k^T + mask) v, all [..., heads, tokens, width]; `enable_gqa`: a key head serves several query heads."""
    q, k, v = (engine.value(n) for n in node.args[:3])
    mask = argument(node, 3, "attn_mask")
    batch = "".join(chr(ord("a") + i) for i in range(q.ndim - 2))
    if argument(node, 7, "enable_gqa", False):
        k, v = (_repeated(t, q.shape[-3]) for t in (k, v))
    sides = [(q, batch + "xk"), (k, batch + "yk")]
    scores = contract(engine, node, sides, batch + "xy", (*q.shape[:-1], k.shape[-2]), _nodes(node.args[:2]))
    assert isinstance(scores, Value)
    if isinstance(mask, fx.Node):
        scores = engine.combine([scores, engine.value(mask)], scores.shape, node)
    mixed = [p for p in (*scores.planes, *scores.rows) if p.shape[-1] > 1]
    engine.lock(mixed, "softmax mixes the units", node)
    return contract(engine, node, [(scores, batch + "xy"), (v, batch + "yv")], batch + "xv")


@rule("cosine_similarity", "cdist")
def likeness(engine: Engine, node: fx.Node) -> Result:
    """How alike vectors are: sums over one dimension of both, which zeros in both don't change."""
    a, b = (engine.value(n) for n in node.args[:2])
    shape = meta_shape(node.meta["val"])
    pairs = operation(node) == "cdist"
    if pairs:
        a, b, dim = _beside(a, -2), _beside(b, -3), -1
    else:
        dim = int(argument(node, 2, "dim", 1))
    ndim = max(a.ndim, b.ndim)
    dim %= ndim
    whole = torch.broadcast_shapes(a.shape, b.shape)
    met = engine.combine([a, b], whole, node)
    planes = []
    for plane in met.planes:
        if plane.shape[dim] == 1:
            planes.append(plane.squeeze(dim))
        elif varying_dims(plane) == (dim,):
            for source in _nodes(node.args[:2]):
                engine.sum_over(plane, node, (source,), length=True)
        else:
            engine.lock([plane], f"{operation(node)} over units of several rows", node)
    return Value(shape, planes)


def _beside(value: Value, dim: int) -> Value:
    """A value with a new dimension of size 1, so that all pairs come to stand."""
    dim %= value.ndim + 1
    planes = [p.unsqueeze(dim) for p in value.planes]
    return Value((*value.shape[:dim], 1, *value.shape[dim:]), planes)


@rule("bilinear")
def bilinear(engine: Engine, node: fx.Node) -> Result:
    """x1 W x2 for each output: no gate can stand for either side; the outputs are units."""
    first, second, weight = (engine.value(n) for n in node.args[:3])
    engine.lock([*first.varying(-1), *second.varying(-1)], "read by a bilinear layer", node)
    engine.lock([*weight.varying(1), *weight.varying(2)], "read by a bilinear layer", node)
    shape = meta_shape(node.meta["val"])
    others = [Value((*v.shape[:-1], 1), [p for p in v.planes if p.shape[-1] == 1]) for v in (first, second)]
    planes = engine.combine(others, (*shape[:-1], 1), node).planes
    outputs = engine.parameter_plane(weight, 0)
    bias = argument(node, 3, "bias")
    engine.unite_vector(bias if isinstance(bias, fx.Node) else None, outputs, node)
    record(engine, node, weight, None, outputs, -1, math.prod(shape[:-1]), planes)
    return Value(shape, [*planes, *([] if outputs is None else [along(outputs, len(shape) - 1, len(shape))])])


def _nodes(arguments: Any) -> tuple[fx.Node, ...]:
    return tuple(a for a in arguments if isinstance(a, fx.Node))


def _repeated(value: Value, heads: int) -> Value:
    """Key and value heads repeated to the number of query heads."""
    dim = value.ndim - 3
    times = heads // value.shape[dim]
    shape = (*value.shape[:dim], heads, *value.shape[dim + 1 :])

    def repeated(planes: Sequence[Tensor]) -> list[Tensor]:
        return [p.repeat_interleave(times, dim) if p.shape[dim] > 1 else p for p in planes]

    return Value(shape, repeated(value.planes), rows=repeated(value.rows))


def contract(
    engine: Engine,
    node: fx.Node,
    operands: Sequence[tuple[Value, str]],
    result: str,
    shape: tuple[int, ...] | None = None,
    sources: Sequence[fx.Node] = (),
) -> Result:
    """The value of a product over named dimensions: what meets is united, what is summed over stays or is noted.

    No layer reads what is summed over here; `graph/summed.py` finds out if a gate can stand for it nevertheless.

    Args:
        engine: the label run.
        node: the operation.
        operands: each with one letter per dimension.
        result: the letters of the result.
        shape: of the result, if the node's own is another (a step inside the operation).
        sources: the operands' nodes, if what is summed over may go.
    """
    order = "".join(dict.fromkeys("".join(letters for _, letters in operands)))
    named = [_named(value, letters, order) for value, letters in operands]
    for letter in order:
        _meet(engine, node, [n for n in named if n.sizes.get(letter, 1) > 1], order.index(letter))
    shape = meta_shape(node.meta["val"]) if shape is None else shape
    found = Value(shape)
    read = _read_stored(engine, node, operands, result) if sources else ""
    for planes, kind in ((found.planes, "planes"), (found.rows, "rows")):
        taken: dict[int, Tensor] = {}
        for operand in named:
            for plane in getattr(operand, kind):
                own = owned(plane)
                if order[own] in read:
                    continue
                if order[own] not in result and sources and kind == "planes":
                    sides = [n for n, o in zip(sources, named, strict=True) if o.sizes.get(order[own], 1) > 1]
                    itself = len(sources) > 1 and len(set(sources)) == 1
                    engine.sum_over(plane, node, tuple(sides[:1] if itself else sides), length=itself)
                    continue
                if order[own] not in result:
                    engine.lock([plane], f"summed over by {operation(node)}, where no gate can stand", node)
                    continue
                summed = [d for d in varying_dims(plane) if order[d] not in result]
                plane = engine.labels.tie(plane, summed)
                if own in taken:
                    engine.labels.unite(plane, taken[own])
                else:
                    taken[own] = plane
        planes += [_laid_out(engine, plane, order, result, node) for plane in taken.values()]
    batches = [r for n in named for r in n.rows if sum(order[owned(r)] in o.sizes for o in named) > 1]
    engine.rows.batched += [r for r in batches if order[owned(r)] in result]
    return found


def _read_stored(engine: Engine, node: fx.Node, operands: Sequence[tuple[Value, str]], result: str) -> str:
    """Note a product of an activation with a stored tensor as a layer's call; returns the letters that it contracts.

    Letters of both that are in the result (a matrix for each head) only pass.
    """
    one_stored = len(operands) == 2 and sum(bool(value.stored) for value, _ in operands) == 1
    if not one_stored or node not in engine.stored.products:
        return ""
    source, letters = next(o for o in operands if not o[0].stored)
    stored, own = next(o for o in operands if o[0].stored)
    weight = weight_of(engine, node, stored)
    if weight.transposed:
        weight, own = engine.parameters[weight.parameter or ""], own[::-1]
    contracted = "".join(k for k in own if k in letters and k not in result)
    for at, k in enumerate(own):
        for line in engine.lines(weight, at) if k in result and k not in letters else ():
            record(engine, node, weight, None, line, 0, 0, (), source=None, axis=1 - at)
    around = [k for k in letters if k not in own]
    positions = math.prod(source.shape[letters.index(k)] for k in around)
    over = [p for p in source.planes if all(letters[d] in around for d in varying_dims(p))]
    for k in contracted:
        dim = letters.index(k)
        rows = [r.reshape(-1) for r in source.rows if varying_dims(r) == (dim,)]
        columns = engine.lines(Value(source.shape, [p for p in source.planes if owned(p) == dim]), dim)
        for read in (*columns, *rows) or (None,):
            place = (dim - source.ndim, positions)
            record(engine, node, weight, read, None, *place, over, source=None, axis=own.index(k))
            positions = 0  # one call, however many dimensions it reads
    return contracted


def _named(value: Value, letters: str, order: str) -> _Named:
    places = [order.index(letter) for letter in letters]

    def laid(plane: Tensor) -> Tensor:
        shape = [1] * len(order)
        for place, size in zip(places, plane.shape, strict=True):
            shape[place] = size
        return plane.permute(sorted(range(len(places)), key=places.__getitem__)).reshape(shape)

    sizes = dict(zip(letters, value.shape, strict=True))
    return _Named(letters, sizes, [laid(p) for p in value.planes], [laid(r) for r in value.rows])


def _meet(engine: Engine, node: fx.Node, operands: Sequence[_Named], dim: int) -> None:
    """Unite what decides along one dimension in all operands that have it; if one has nothing there, it is fixed."""
    for kind in ("rows", "planes"):
        owners = [[p for p in getattr(o, kind) if owned(p) == dim] for o in operands]
        if not any(owners) or len(operands) < 2:
            continue
        if kind == "planes" and any(owned(r) == dim for o in operands for r in o.rows) and not all(owners):
            continue  # rows decide there, and a parameter of one entry per row has met them
        for own, operand in zip(owners, operands, strict=True):
            if not own and not (kind == "rows" and _meets_rows(engine, operand, owners, dim)):
                fixed = [p for other in owners for p in other]
                engine.lock(fixed, f"meets a tensor of fixed size in {operation(node)}", node)
        present = [p for own in owners for p in own]
        for plane in present[1:]:
            engine.labels.unite(present[0], plane)


def _meets_rows(engine: Engine, operand: _Named, owners: Sequence[Sequence[Tensor]], dim: int) -> bool:
    lines = [p for p in operand.planes if varying_dims(p) == (dim,)]
    row = next(p for own in owners for p in own)
    if len(lines) != 1 or varying_dims(row) != (dim,):
        return False
    engine.labels.unite(lines[0], row)
    return True


def _laid_out(engine: Engine, plane: Tensor, order: str, result: str, node: fx.Node) -> Tensor:
    """From the order of all letters to the result's; where indexing dimensions change places columns are tied."""
    places = [order.index(letter) for letter in result]
    dims = [d for d in places if plane.shape[d] > 1]
    if dims != sorted(dims):
        plane = engine.labels.tie(plane, sorted(dims)[:-1])
    rest = [d for d in range(plane.dim()) if d not in places]
    return plane.permute(places + rest).reshape([plane.shape[d] for d in places])


def _refused(engine: Engine, node: fx.Node, values: Sequence[Value]) -> Result:
    for value in values:
        engine.lock(value.planes, f"no rule for this form of {operation(node)}", node)
    engine.lock_rows(values, node)
    return Value(meta_shape(node.meta["val"]))
