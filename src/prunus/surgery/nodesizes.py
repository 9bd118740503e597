"""Sizes in the nodes of a captured graph, brought in line with what a plan keeps.

Every shape, split, slice and padding constant becomes the number of kept labels in the node's own planes. Sizes that
the graph computes (a free batch size, times the heads that are merged with it) stay those of the dense network, and are
scaled by the share of kept labels where they are used.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from prunus.graph.engine import argument, operation
from prunus.graph.grouping import Graph
from prunus.graph.groups import Selection
from prunus.graph.labels import Value
from prunus.graph.rules.movement import FILLS
from prunus.plan.kept import BoolArray, Kept, alive, count, line, renumbered

SHAPED = {
    "view": 1, "reshape": 1, "_unsafe_view": 1, "expand": 1, "broadcast_to": 1, "unflatten": 2, **FILLS,
}  # fmt: skip
"""Operations that are given the shape of their result, and which argument it is."""
PIECES = ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
REPEATS = ("repeat", "tile", "repeat_interleave")


def resize_(target: fx.Node, source: fx.Node, result: Any, graph: Graph, kept: Kept) -> None:
    """Rewrite the sizes in `target`, the node that became of `source`, whose labels are `result`."""
    if source in graph.selections:
        select_(target, source, graph.selections[source], kept)
        return
    name = operation(source)
    arguments: list[Any] = list(target.args)
    operand = graph.values.get(source.args[0]) if source.args and isinstance(source.args[0], fx.Node) else None
    before = operand if isinstance(operand, Value) else None
    after = result if isinstance(result, Value) else None
    if name == "sym_size" and before is not None:
        _dense_again(target, before, int(arguments[1]), kept)
        return
    if name in SHAPED and after is not None and isinstance(arguments[SHAPED[name]], list | tuple):
        index = SHAPED[name]
        offset = int(arguments[1]) % before.ndim if name == "unflatten" and before is not None else 0
        expanding = name in ("expand", "broadcast_to")
        sizes = [_resized(s, after, offset + d, kept, expanding, target) for d, s in enumerate(arguments[index])]
        arguments[index] = sizes
    elif name in REPEATS and before is not None and after is not None:
        arguments = _repeats(name, arguments, before, after, kept)
    elif name == "slice" and before is not None:
        dim = int(arguments[1]) if len(arguments) > 1 else 0
        stays = line(before, dim, kept)
        if stays is not None:
            start, end = (*arguments[2:4], None, None)[:2]
            strided = len(arguments) > 4 and arguments[4] != 1  # whole blocks went: the first position is what it was
            arguments[2:4] = [start if strided else _moved(start, stays), _moved(end, stays)]
    elif name == "narrow" and before is not None:
        stays = line(before, int(arguments[1]), kept)
        if stays is not None and isinstance(arguments[2], int):
            start, length = arguments[2] % len(stays), arguments[3]
            arguments[2:4] = [int(stays[:start].sum()), int(stays[start : start + length].sum())]
    elif name == "slice_scatter" and before is not None:
        stays = line(before, int(argument(source, 2, "dim", 0)), kept)
        if stays is not None:
            arguments[3:5] = [_moved(position, stays) for position in (*arguments[3:5], None, None)[:2]]
    elif name == "roll" and before is not None and len(arguments) > 2:
        arguments[1] = [_wrapped(n, line(before, dim, kept)) for n, dim in zip(*arguments[1:3], strict=True)]
    elif name in PIECES and before is not None and isinstance(result, list):
        dim = int(argument(source, 2, "dim", 0))
        if alive(before, dim % before.ndim, kept) is not None:
            counts = [count(v, dim, kept) for v in result]
            whole = [v.shape[dim % before.ndim] for v in result]
            target.target, target.kwargs = torch.ops.aten.split_with_sizes.default, {}
            arguments = [arguments[0], [w if s is None else s for s, w in zip(counts, whole, strict=True)], dim]
    elif name in ("pad", "constant_pad_nd") and before is not None and after is not None:
        arguments[1] = _padding(list(arguments[1]), before, after, kept)
    elif name.startswith("conv") and len(arguments) > 6 and before is not None:
        weight = graph.values[source.args[1]]  # type: ignore[index]
        channel = before.ndim - (weight.ndim - 1)  # type: ignore[union-attr]
        if int(arguments[6]) == before.shape[channel] > 1:
            arguments[6] = count(before, channel, kept) or arguments[6]
    elif name == "scaled_dot_product_attention" and before is not None:
        target.kwargs = {**target.kwargs, "scale": target.kwargs.get("scale") or before.shape[-1] ** -0.5}
    elif name in ("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm") and before is not None:
        axes = len(arguments[1])
        arguments[1] = [count(before, before.ndim - axes + d, kept) or size for d, size in enumerate(arguments[1])]
    target.args = tuple(arguments)


def select_(target: fx.Node, source: fx.Node, selection: Selection, kept: Kept) -> None:
    """Give an operation that selects units an index of its own; one in a buffer is edited with the other tensors."""
    values = None if selection.tensor else renumbered(selection, kept.positions)
    if values is None:
        return
    where = next(n for n in target.all_input_nodes[1:])
    held = source.all_input_nodes[1].meta["val"]
    owner = target.graph.owning_module
    assert owner is not None
    name = f"{target.name}_positions"
    owner.register_buffer(name, torch.tensor(values, dtype=held.dtype, device=held.device), persistent=False)
    with target.graph.inserting_before(target):
        target.replace_input_with(where, target.graph.get_attr(name))


def _dense_again(target: fx.Node, measured: Value, dim: int, kept: Kept) -> None:
    """Whoever asks for the size of what became smaller gets the dense size: all that is computed from it is dense."""
    ratio = _ratio(measured, dim, kept)
    if ratio is None:
        return
    stays, of = ratio
    users = list(target.users)
    with target.graph.inserting_after(target):
        dense = target.graph.call_function(operator.mul, (target, of))
    with target.graph.inserting_after(dense):
        whole = target.graph.call_function(operator.floordiv, (dense, stays))
    for user in users:
        user.replace_input_with(target, whole)


def _ratio(value: Value, dim: int, kept: Kept) -> tuple[int, int] | None:
    """The share of positions along `dim` that stays, as a fraction; None if all stay."""
    stays = count(value, dim, kept)
    size = value.shape[dim % max(value.ndim, 1)]
    if stays is None or stays == size:
        return None
    common = math.gcd(stays, size)
    return stays // common, size // common


def _resized(size: Any, value: Value, dim: int, kept: Kept, expanding: bool, target: fx.Node) -> Any:
    if isinstance(size, fx.Node):
        ratio = _ratio(value, dim, kept)
        if ratio is None:
            return size
        graph = target.graph
        with graph.inserting_before(target):
            scaled = graph.call_function(operator.mul, (size, ratio[0]))
            return graph.call_function(operator.floordiv, (scaled, ratio[1]))
    if not isinstance(size, int) or size == -1 or (expanding and size == 1):
        return size
    stays = count(value, dim, kept)
    return size if stays is None else stays


def _repeats(name: str, arguments: list[Any], before: Value, after: Value, kept: Kept) -> list[Any]:
    """How often something is repeated: what stays of the result over what stays of the source."""

    def again(number: Any, dim: int) -> Any:
        inner = dim - (after.ndim - before.ndim)
        left = count(after, dim, kept)
        if not isinstance(number, int) or left is None:
            return number
        had = 1 if inner < 0 else (count(before, inner, kept) or before.shape[inner])
        return left // had if had and left % had == 0 else number

    if name == "repeat_interleave":
        if len(arguments) > 2 and isinstance(arguments[2], int):
            arguments[1] = again(arguments[1], arguments[2] % before.ndim)
        return arguments
    offset = after.ndim - len(arguments[1])
    arguments[1] = [again(number, offset + d) for d, number in enumerate(arguments[1])]
    return arguments


def _moved(position: Any, stays: BoolArray) -> Any:
    if not isinstance(position, int):
        return position
    size = len(stays)
    if position >= size:
        return position
    return int(stays[: position % size if position < 0 else position].sum())


def _wrapped(shift: int, stays: BoolArray | None) -> int:
    """How many of the kept positions a roll carries round the end."""
    if stays is None:
        return shift
    return int(stays[len(stays) - shift % len(stays) :].sum()) if shift % len(stays) else 0


def _padding(amounts: Sequence[Any], before: Value, after: Value, kept: Kept) -> list[Any]:
    amounts = list(amounts)
    for dim in range(before.ndim):
        position = 2 * (before.ndim - 1 - dim)
        stays, had = line(after, dim, kept), line(before, dim, kept)
        if stays is None or had is None or position >= len(amounts):
            continue
        amounts[position], amounts[position + 1] = (
            int(stays[:n].sum()) if n >= 0 else -int(had[:-n].sum())
            for n, stays, had in (
                (amounts[position], stays, had),
                (amounts[position + 1], stays[::-1], had[::-1]),
            )
        )
    return amounts
