"""The same values more than once, or in another order: expand, repeat, flip, roll, shuffles."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from prunus.graph.engine import Engine, Result, argument, example_size, meta_shape, operation
from prunus.graph.labels import Value, align, along, squeeze_constant, varying_dims
from prunus.graph.registry import rule
from prunus.graph.resizing import Resizing, shape_at
from prunus.graph.rules.creation import unknown
from prunus.graph.zeros import moved, spread


@rule("expand", rows=True, rewrite=shape_at(1, broadcasts=True), zeros=spread)
@rule("expand_as", rows=True, zeros=spread)
@rule("broadcast_to", rows=True, rewrite=shape_at(1, broadcasts=True))
def expand(engine: Engine, node: fx.Node) -> Result:
    """Broadcasting: labels stay."""
    return _spread(engine, engine.value(node.args[0]), node)


def _spread(engine: Engine, source: Value, node: fx.Node) -> Value:
    """A value repeated along dimensions of size 1, or along new ones in front.

    One key head repeated for many query heads becomes as many rows. Elsewhere it takes the labels of what it meets
    (`Engine.new_free`): a statistic expanded to the shape of what it was taken of is no tensor of fixed size.
    """
    shape = meta_shape(node.meta["val"])
    sizes = (1,) * (len(shape) - source.ndim) + source.shape
    planes, rows = ([align(p, len(shape)) for p in kind] for kind in (source.planes, source.rows))
    repeated = [d for d, size in enumerate(sizes) if size == 1 and shape[d] > 1]
    heads = [d for d in repeated if 1 <= d < len(shape) - 2] if source.planes and not source.rows else []
    if len(heads) == 1:
        rows.append(along(engine.new_rows([shape[heads[0]]]), heads[0], len(shape)))
        repeated.remove(heads[0])
    for dim in repeated:
        if dim and isinstance(node.meta["val"].shape[dim], int):
            planes.append(along(engine.new_free(shape[dim]), dim, len(shape)))
    return Value(shape, planes, rows=rows)


def _again(call: Resizing, number: Any, dim: int) -> Any:
    """How often something is repeated: what stays of the result over what stays of the source."""
    before, after = call.before, call.after
    assert before is not None
    assert after is not None
    inner = dim - (after.ndim - before.ndim)
    left = call.count(after, dim)
    if not isinstance(number, int) or left is None:
        return number
    had = 1 if inner < 0 else (call.count(before, inner) or before.shape[inner])
    return left // had if had and left % had == 0 else number


def _repeats(call: Resizing) -> None:
    """`(input, repeats)`: one number per dimension of the result."""
    if call.before is not None and call.after is not None:
        first = call.after.ndim - len(call.arguments[1])
        call.arguments[1] = [_again(call, number, first + d) for d, number in enumerate(call.arguments[1])]


def _repeats_along(call: Resizing) -> None:
    """`(input, repeats, dim)`."""
    dim = call.arguments[2] if len(call.arguments) > 2 else None
    if call.before is not None and call.after is not None and isinstance(dim, int):
        call.arguments[1] = _again(call, call.arguments[1], dim % call.before.ndim)


@rule("repeat", "tile", rows=True, rewrite=_repeats, zeros=moved)
@rule("repeat_interleave", rows=True, rewrite=_repeats_along, zeros=moved)
@rule("flip", rows=True, zeros=moved)
def repeat(engine: Engine, node: fx.Node) -> Result:
    """Values again and again, or backwards; whole rows (key heads for several query heads) with them."""
    source = engine.value(node.args[0])
    shape = meta_shape(node.meta["val"])
    if any(isinstance(n.meta["val"], Tensor) for n in node.all_input_nodes[1:]):
        return unknown(engine, node)
    sizes = (1,) * (len(shape) - source.ndim) + source.shape
    if operation(node) != "flip" and all(size in (1, new) for size, new in zip(sizes, shape, strict=True)):
        return _spread(engine, source, node)
    planes, rows = ([_run(node, p, source) for p in kind] for kind in (source.planes, source.rows))
    return Value(shape, planes, rows=rows)


def _shifts(call: Resizing) -> None:
    """`(input, shifts, dims)`: how many of the kept positions are carried round the end."""

    def wrapped(shift: int, dim: int) -> int:
        stays = None if call.before is None else call.line(call.before, dim)
        if stays is None:
            return shift
        return int(stays[len(stays) - shift % len(stays) :].sum()) if shift % len(stays) else 0

    if call.before is not None and len(call.arguments) > 2:
        call.arguments[1] = [wrapped(n, dim) for n, dim in zip(*call.arguments[1:3], strict=True)]


@rule("roll", rewrite=_shifts, zeros=moved)
@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "rot90", "diagonal")
def execute(engine: Engine, node: fx.Node) -> Result:
    """Run the operation on labels of full shape: exact for any pure movement with constant arguments."""
    source = engine.value(node.args[0])
    planes = []
    for plane in source.planes:
        if operation(node) == "channel_shuffle" and plane.shape[1] > 1:
            rows = int(argument(node, 1, "groups"))
            engine.labels.tie(plane.movedim(1, 0).reshape(rows, source.shape[1] // rows, -1), [0])
        if (
            operation(node) == "roll"
            and _rolled(node, plane)
            and varying_dims(plane) not in [(int(d) % source.ndim,) for d in argument(node, 2, "dims", [])]
        ):
            engine.lock([plane], "rolled along units that lie in several rows", node)
            continue
        planes.append(_tie_moved(engine, plane, _run(node, plane, source)))
    return Value(meta_shape(node.meta["val"]), planes)


def _run(node: fx.Node, plane: Tensor, source: Value) -> Tensor:
    args, kwargs = fx.map_arg((tuple(node.args[1:]), dict(node.kwargs)), example_size)
    return squeeze_constant(node.target(plane.expand(source.shape), *args, **kwargs))  # type: ignore[operator]


def _rolled(node: fx.Node, plane: Tensor) -> bool:
    dims = argument(node, 2, "dims", [])
    return not dims or any(plane.shape[int(d) % plane.dim()] > 1 for d in dims)


def _tie_moved(engine: Engine, plane: Tensor, found: Tensor) -> Tensor:
    """Labels spread over several dimensions are tied to the one where the output's units lie."""
    dims = varying_dims(found)
    if len(dims) < 2:
        return found
    main = varying_dims(plane)[0]
    keep = main if main in dims else dims[0]
    return engine.labels.tie(found, [d for d in dims if d != keep])
