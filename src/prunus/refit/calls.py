"""Calls of layers in a captured graph as linear problems: rows of inputs, taps, rows of outputs, one matrix a group."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from prunus.graph.engine import argument, module_path, operation

LINEAR = ("linear", "addmm")
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer with a stored weight.

    Attributes:
        node: the call.
        source: what it is applied to.
        weight: the node that fetches the weight.
        bias: the node that fetches the bias, or None.
        kind: name of the operation.
        groups: of a convolution; 1 otherwise.
        stride: of a convolution, one number for each spatial dimension; so are the next two.
        padding: zeros before the first position.
        dilation: distance of taps.
    """

    node: fx.Node
    source: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    kind: str
    groups: int = 1
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The layer, or the weight where no module made the call."""
        return module_path(self.node) or str(self.weight.target)

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return self.kind.startswith("conv_transpose")

    def channel_dim(self, value: Tensor, weight: Tensor) -> int:
        """The dimension of the call's input and output that holds channels."""
        return value.dim() - 1 if self.kind in LINEAR else value.dim() - (weight.dim() - 1)

    def examples_in(self, value: Tensor, weight: Tensor, batch: int) -> int:
        """How many there are in the call's output.

        Those of the batch, also where positions were merged with them (tokens, windows); one where no dimension is left
        for them; otherwise what lies along the first.
        """
        if value.dim() == (1 if self.kind in LINEAR else weight.dim() - 1):
            return 1
        return batch if batch and len(value) % batch == 0 else len(value)

    def as_matrix(self, weight: Tensor) -> Tensor:
        """The weight as [groups, taps * inputs of a group, outputs of a group]."""
        g = self.groups
        if self.kind == "linear":
            return weight.t()[None]
        if self.kind == "addmm":
            return weight[None]
        taps = weight[0, 0].numel()
        if self.transposed:
            apart = weight.reshape(g, weight.shape[0] // g, weight.shape[1], taps).permute(0, 3, 1, 2)
        else:
            apart = weight.reshape(g, weight.shape[0] // g, weight.shape[1], taps).permute(0, 3, 2, 1)
        return apart.reshape(g, -1, apart.shape[-1])

    def as_weight(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """`as_matrix` backwards."""
        g = self.groups
        if self.kind == "linear":
            return matrix[0].t().contiguous()
        if self.kind == "addmm":
            return matrix[0].contiguous()
        taps = math.prod(shape[2:])
        apart = matrix.reshape(g, taps, -1, matrix.shape[-1])
        apart = apart.permute(0, 2, 3, 1) if self.transposed else apart.permute(0, 3, 2, 1)
        return apart.reshape(tuple(shape)).contiguous()


def layer_call(node: fx.Node) -> LayerCall | None:
    """The call of a layer with a weight that is stored as it is, or None."""
    kind = operation(node)
    source: Any
    weight: Any
    bias: Any
    if kind == "linear":
        source, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    elif kind == "addmm":
        bias, source, weight = node.args[:3]
        if any(argument(node, i, n, 1) != 1 for i, n in ((3, "beta"), (4, "alpha"))):
            return None
    elif kind in CONVOLUTIONS:
        source, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    else:
        return None
    if not (_stored(weight) and isinstance(source, fx.Node) and (bias is None or _stored(bias))):
        return None
    if kind in LINEAR:
        return LayerCall(node, source, weight, bias, kind)
    return _convolution(node, kind, source, weight, bias)


def computed_layer(node: fx.Node) -> fx.Node | None:
    """What a layer reads whose weight is not stored as it is; None for all else."""
    source = node.args[0] if node.op == "call_function" and operation(node) in ("linear", *CONVOLUTIONS) else None
    return source if isinstance(source, fx.Node) and layer_call(node) is None else None


def _stored(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def _convolution(node: fx.Node, kind: str, source: fx.Node, weight: fx.Node, bias: fx.Node | None) -> LayerCall | None:
    size: Any = weight.meta["val"].shape if "val" in weight.meta else None
    spatial = int(kind[-2])
    transposed = kind.startswith("conv_transpose")
    stride = _several(argument(node, 3, "stride", 1), spatial)
    given = argument(node, 4, "padding", 0)
    place = (7, 6) if transposed else (5, 6)
    dilation = _several(argument(node, place[0], "dilation", 1), spatial)
    groups = argument(node, place[1], "groups", 1)
    if given == "same" and size is None:
        return None
    if given == "same":
        padding = tuple(d * (int(k) - 1) // 2 for d, k in zip(dilation, size[2:], strict=True))
    else:
        padding = _several(0 if given == "valid" else given, spatial)
    numbers = (*stride, *padding, *dilation, groups)
    if not all(isinstance(n, int) for n in numbers):
        return None
    return LayerCall(node, source, weight, bias, kind, groups, stride, padding, dilation)


def _several(value: Any, count: int) -> tuple[int, ...]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(values * count if len(values) == 1 else values)


def rows_of(call: LayerCall, value: Tensor, weight: Tensor) -> Tensor:
    """A call's input or output as [examples * positions, channels]."""
    dim = call.channel_dim(value, weight)
    return value.movedim(dim, -1).reshape(-1, value.shape[dim])


def picked_rows(call: LayerCall, value: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """Some rows of a call's input or output, [N, channels], without a copy of all; see `rows_of`."""
    spatial = weight.dim() - 2
    if call.kind in LINEAR or value.dim() != weight.dim():
        return rows_of(call, value, weight).index_select(0, rows)
    each = math.prod(value.shape[-spatial:])
    return value.flatten(2).transpose(1, 2)[rows // each, rows % each]


def read_places(call: LayerCall, weight: Tensor, source: Tensor, result: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows of the input each tap of some rows of the output reads.

    Args:
        call: the call.
        weight: its weight.
        source: its input.
        result: its output.
        rows: numbers of rows of the output, int64 [N].

    Returns:
        Numbers of rows of the input, int64 [N, taps]; and whether a tap lies inside of it, bool [N, taps].
    """
    if call.kind in LINEAR:
        return rows[:, None], torch.ones_like(rows, dtype=torch.bool)[:, None]
    spatial = weight.dim() - 2
    sizes, results, kernel = source.shape[-spatial:], result.shape[-spatial:], weight.shape[2:]
    example, position = rows // math.prod(results), rows % math.prod(results)
    taps = torch.tensor(list(itertools.product(*map(range, kernel))), device=rows.device).reshape(-1, spatial)
    place = torch.zeros(len(rows), len(taps), dtype=torch.int64, device=rows.device)
    inside = torch.ones_like(place, dtype=torch.bool)
    for dim in range(spatial):
        here = (position // math.prod(results[dim + 1 :])) % results[dim]
        there, stride = taps[:, dim] * call.dilation[dim], call.stride[dim]
        if call.transposed:
            found = here[:, None] + call.padding[dim] - there
            inside &= found % stride == 0
            found = found.div(stride, rounding_mode="floor")
        else:
            found = here[:, None] * stride - call.padding[dim] + there
        inside &= (found >= 0) & (found < sizes[dim])
        place = place * sizes[dim] + found
    place = place + example[:, None] * math.prod(sizes)
    return torch.where(inside, place, torch.zeros_like(place)), inside


def regressors(
    call: LayerCall, source: Tensor, weight: Tensor, place: Tensor, inside: Tensor, channels: Tensor | None
) -> Tensor:
    """What some rows of the output are made of, [N, groups, taps * inputs of a group].

    Args:
        call: the call.
        source: its input.
        weight: its weight.
        place: numbers of rows of the input, see `read_places`.
        inside: which of them are there.
        channels: which inputs are taken, bool; None takes all.
    """
    samples, taps = place.shape
    few = place.numel() < source.numel() // source.shape[call.channel_dim(source, weight)]
    # Where fewer rows are read than there are, they are fetched first; otherwise channels go first.
    rows = picked_rows(call, source, weight, place.reshape(-1)) if few else rows_of(call, source, weight)
    rows = rows if channels is None else rows[:, channels]
    read = (rows if few else rows.index_select(0, place.reshape(-1))).reshape(samples, taps, -1)
    read = read * inside[:, :, None].to(read) if not bool(inside.all()) else read
    apart = read.reshape(samples, taps, call.groups, -1)
    return apart.transpose(1, 2).reshape(samples, call.groups, -1)
