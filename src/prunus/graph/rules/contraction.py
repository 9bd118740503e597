"""Convolutions, linear layers, embeddings: what is contracted is united, what comes out is labelled by the weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from prunus.graph.engine import Engine, Result, argument, meta_shape, module_path, operation
from prunus.graph.labels import Value, along, varying_dims
from prunus.graph.notes import Call
from prunus.graph.registry import rule
from prunus.graph.resizing import Resizing
from prunus.graph.rules.selecting import CHOSEN, selected_by
from prunus.graph.stored import lay_elements, lay_rows, matching, weight_of
from prunus.graph.zeros import written


@rule("linear", rows=True, zeros=written, ignores_zeros=True, sides=(0, 1))
def linear(engine: Engine, node: fx.Node) -> Result:
    """y = x W^T + b, contracting the last dimension of x with W's second."""
    source, weight = engine.value(node.args[0]), weight_of(engine, node, engine.value(node.args[1]))
    return product_with_weight(engine, node, source, weight, 1, argument(node, 2, "bias", None))


@rule("addmm", rows=True, zeros=written, ignores_zeros=True, sides=(1, 2))
def addmm(engine: Engine, node: fx.Node) -> Result:
    """bias + x W with a stored W [I, O], as GPT-2's `Conv1D` computes; other sums of products have no rule."""
    bias, source, weight = (engine.value(n) for n in node.args[:3])
    weight = weight_of(engine, node, weight)
    if weight.parameter is None:
        engine.lock([*bias.planes, *source.planes, *weight.planes], "no rule for addmm without a stored weight", node)
        engine.lock_rows([bias, source, weight], node)
        return Value(meta_shape(node.meta["val"]))
    return product_with_weight(engine, node, source, weight, 0, node.args[0])


def product_with_weight(engine: Engine, node: fx.Node, source: Value, weight: Value, axis: int, bias: Any) -> Result:
    """The last dimension of `source` contracted with dimension `axis` of a stored [., .] weight."""
    if weight.parameter is not None and weight.transposed:
        weight, axis = engine.parameters[weight.parameter], 1 - axis
    shape = meta_shape(node.meta["val"])
    last = len(shape) - 1
    inputs = _contract(engine, source, source.ndim - 1, weight, axis, node)
    outputs = engine.parameter_plane(weight, 1 - axis)
    if isinstance(bias, fx.Node):
        engine.unite_vector(bias, outputs, node)
    planes = [p for p in source.planes if p.shape[-1] == 1]
    rows = [r for r in source.rows if r.shape[-1] == 1]
    read = _read_rows(engine, [r for r in source.rows if r.shape[-1] > 1], weight, axis, node)
    position = 1 if operation(node) == "addmm" else 0
    record(
        engine, node, weight, inputs, outputs, -1, math.prod(shape[:-1]), planes, rows=read, source=position, axis=axis
    )
    if outputs is not None:
        planes.append(along(outputs, last, len(shape)))
        rows += _written_rows(weight, 1 - axis, last, len(shape))
    return Value(shape, planes, rows=rows)


def _written_rows(weight: Value, axis: int, dim: int, ndim: int) -> list[Tensor]:
    """Whole rows that a weight, used before, is known to write: along dimension `dim` of what it writes now."""
    return [along(r.reshape(-1), dim, ndim) for r in weight.rows if varying_dims(r) == (axis,)]


def _read_rows(engine: Engine, rows: Sequence[Tensor], weight: Value, axis: int, node: fx.Node) -> list[Tensor]:
    """Whole rows over the contracted dimension (the last): the weight's columns are theirs too."""
    found = []
    for row in rows:
        if varying_dims(row) != (row.dim() - 1,) or weight.parameter is None:
            engine.lock([row], f"no rule for whole rows in {operation(node)}", node)
            continue
        line = row.reshape(-1)
        lay_rows(engine, weight, axis, line, node)
        found.append(line)
    return found


def _one_group_each(call: Resizing) -> None:
    """`(input, weight, bias, stride, padding, dilation, groups)`: a depthwise convolution has as many as channels."""
    if len(call.arguments) <= 6 or call.before is None:
        return
    weight = call.values[call.node.args[1]]  # type: ignore[index]
    channel = call.before.ndim - (weight.ndim - 1)  # type: ignore[union-attr]
    if int(call.arguments[6]) == call.before.shape[channel] > 1:
        call.arguments[6] = call.count(call.before, channel) or call.arguments[6]


@rule(
    "conv1d", "conv2d", "conv3d",
    rows=True, rewrite=_one_group_each, zeros=written, ignores_zeros=True, sides=(0, 1),
)  # fmt: skip
def convolution(engine: Engine, node: fx.Node) -> Result:
    """Convolution, plain, depthwise or grouped; weight [O, I/groups, ...]."""
    shape = meta_shape(node.meta["val"])
    weight = weight_of(engine, node, engine.value(node.args[1]))
    groups = int(argument(node, 6, "groups", 1))
    outputs = engine.parameter_plane(weight, 0)
    spatial = weight.ndim - 2
    return _convolve(engine, node, weight, groups, outputs, 1, math.prod(shape[-spatial:]))


@rule(
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    rows=True, rewrite=_one_group_each, zeros=written, ignores_zeros=True, sides=(0, 1),
)  # fmt: skip
def transposed_convolution(engine: Engine, node: fx.Node) -> Result:
    """Transposed convolution, plain, depthwise or grouped; weight [I, O/groups, ...]."""
    source, weight = engine.value(node.args[0]), weight_of(engine, node, engine.value(node.args[1]))
    groups = int(argument(node, 6, "groups", 1))
    spatial = weight.ndim - 2
    outputs = engine.parameter_plane(weight, 1)
    return _convolve(engine, node, weight, groups, outputs, 0, math.prod(source.shape[-spatial:]))


def _convolve(
    engine: Engine,
    node: fx.Node,
    weight: Value,
    groups: int,
    outputs: Tensor | None,
    input_axis: int,
    positions: int,
) -> Result:
    source = engine.value(node.args[0])
    shape = meta_shape(node.meta["val"])
    channel = source.ndim - (weight.ndim - 1)
    spatial = [p for p in source.planes if p.shape[channel] == 1 and any(s > 1 for s in p.shape[channel + 1 :])]
    positions_pass = math.prod(weight.shape[2:]) == 1 and source.shape[channel + 1 :] == shape[channel + 1 :]
    if not positions_pass:
        engine.lock(spatial, "a convolution mixes positions that units lie along", node)
    depthwise = groups > 1 and groups == source.shape[channel]
    engine.lock([r for r in source.rows if any(s > 1 for s in r.shape[channel + 1 :])], "convolved over rows", node)
    over = [r for r in source.rows if r.shape[channel] > 1]
    read: list[Tensor] = []
    rows: list[Tensor] = []
    if groups == 1:
        inputs = _contract(engine, source, channel, weight, input_axis, node)
        read = _read_rows(engine, [r.movedim(channel, -1) for r in over], weight, input_axis, node)
    else:
        inputs = engine.parameter_plane(source, channel)
        if input_axis == 0:
            outputs = _grouped_transposed(engine, node, weight, groups, inputs, depthwise)
        else:
            outputs = _grouped(engine, node, weight, groups, inputs, outputs, depthwise)
        if depthwise and outputs is not None and len(outputs) == groups:
            rows = engine.adopt_along(source, channel, node)
        else:
            engine.lock(over, "whole rows meet a grouped convolution", node)
    engine.unite_vector(argument(node, 2, "bias", None), outputs, node)
    planes = [p for p in source.planes if all(s == 1 for s in p.shape[channel:])]
    planes += spatial if positions_pass else []
    record(
        engine, node, weight, inputs, outputs, channel - source.ndim, shape[0] * positions, planes, depthwise, read,
        axis=input_axis,
    )  # fmt: skip
    if outputs is not None:
        planes.append(along(outputs, channel, len(shape)))
        if not depthwise:
            rows += _written_rows(weight, 1 - input_axis, channel, len(shape))
    return Value(shape, planes, rows=rows)


def _grouped(
    engine: Engine,
    node: fx.Node,
    weight: Value,
    groups: int,
    inputs: Tensor | None,
    outputs: Tensor | None,
    depthwise: bool,
) -> Tensor | None:
    """Depthwise: output channels are their input channel. Grouped: equal counts per group on both sides."""
    if inputs is None or outputs is None:
        engine.lock([*weight.planes], "grouped convolution of channels of fixed size", node)
        if inputs is not None:
            engine.lock([inputs], "grouped convolution of channels of fixed size", node)
        return None
    if depthwise:
        engine.labels.unite(outputs.reshape(groups, -1), inputs.reshape(groups, 1))
        return outputs
    name = weight.parameter
    if name is None:
        engine.lock([inputs, outputs, *weight.planes], "the weight of a grouped convolution is computed", node)
        return outputs
    rows = f"{groups} groups of a convolution"
    engine.equal_counts(inputs.reshape(groups, -1), rows)
    engine.equal_counts(outputs.reshape(groups, -1), rows)
    per_group = len(outputs) // groups
    elements = inputs.reshape(groups, 1, -1).expand(groups, per_group, -1).reshape(len(outputs), -1)
    if not lay_elements(engine, weight, elements, node):
        engine.lock([inputs, outputs, *weight.planes], "the weight of a grouped convolution is computed", node)
    return outputs


def _grouped_transposed(
    engine: Engine, node: fx.Node, weight: Value, groups: int, inputs: Tensor | None, depthwise: bool
) -> Tensor | None:
    """Depthwise: output channels are their input channel. Grouped: equal counts per group on both sides.

    No dimension of the weight is that of the outputs: each of its elements is of the output that its group makes of it.
    """
    own = engine.parameter_plane(weight, 0)
    per_group = weight.shape[1]
    if inputs is None or own is None or weight.parameter is None:
        fixed = [line for line in (inputs, *weight.planes) if line is not None]
        engine.lock(fixed, "grouped convolution of channels of fixed size or with a computed weight", node)
        return None
    engine.labels.unite(own, inputs)
    if depthwise:
        engine.lock(weight.varying(1), "several outputs of a depthwise convolution", node)
        return inputs.repeat_interleave(per_group)
    outputs = engine.labels.fresh(groups * per_group)
    rows = f"{groups} groups of a convolution"
    engine.equal_counts(inputs.reshape(groups, -1), rows)
    engine.equal_counts(outputs.reshape(groups, -1), rows)
    elements = outputs.reshape(groups, 1, -1).expand(groups, len(inputs) // groups, -1).reshape(len(inputs), -1)
    if not lay_elements(engine, weight, elements.reshape(*elements.shape, *([1] * (weight.ndim - 2))), node):
        engine.lock([inputs, outputs, *weight.planes], "the weight of a grouped convolution is computed", node)
    return outputs


def _contract(engine: Engine, source: Value, dim: int, weight: Value, axis: int, node: fx.Node) -> Tensor | None:
    """Unite the contracted dimension of the input with the weight's; a fixed side fixes the other."""
    if len(weight.varying(axis)) > 1 and weight.parameter in engine.stored.computed:
        return _contract_repeated(engine, source, dim, weight, axis, node)
    inputs = engine.parameter_plane(source, dim)
    columns = engine.parameter_plane(weight, axis)
    if inputs is None and columns is not None:
        engine.lock([columns], "reads a tensor of fixed size", node)
    elif columns is None and inputs is not None:
        engine.lock([inputs], "contracted with a weight that is computed, not stored", node)
    elif inputs is not None and columns is not None:
        engine.labels.unite(inputs, columns)
        return inputs
    return None


def _contract_repeated(
    engine: Engine, source: Value, dim: int, weight: Value, axis: int, node: fx.Node
) -> Tensor | None:
    """A weight whose columns are several stored dimensions in one: each is met by what repeats in the same pattern."""
    read, columns = engine.lines(source, dim), engine.lines(weight, axis)
    pairs = matching(read, columns)
    met = [line for pair in pairs for line in pair]
    engine.lock([r for r in (*read, *columns) if not any(r is m for m in met)], "reads a tensor of fixed size", node)
    for inputs, own in pairs:
        engine.labels.unite(inputs, own)
    for inputs, _ in pairs[1:]:  # read by the same call, whose cost is that of the first
        record(engine, node, weight, inputs, None, dim - source.ndim, 0, (), axis=axis)
    return pairs[0][0] if pairs else None


def record(
    engine: Engine,
    node: fx.Node,
    weight: Value,
    inputs: Tensor | None,
    outputs: Tensor | None,
    input_dim: int,
    positions: int,
    over: Sequence[Tensor],
    depthwise: bool = False,
    rows: Sequence[Tensor] = (),
    source: int | None = 0,
    axis: int = 1,
) -> None:
    """Note a call of a layer, for readers, writers and costs; see `Call`. Without `source` no module is given it."""
    if weight.parameter is None:
        lines = [line for line in (inputs, outputs, *rows) if line is not None]
        engine.lock(lines, "the layer's weight is computed, not stored", node)
        return
    examples = max(min(1, positions), positions // engine.batch) if positions % engine.batch == 0 else positions
    at_input = source is not None and _reads_its_input(node, source)
    call = Call(
        node, module_path(node), weight.parameter, inputs, outputs, input_dim, examples, depthwise,
        tuple(over), axis, bool(rows), at_input, engine.stored.products.get(node),
    )  # fmt: skip
    engine.calls.append(call)


def _reads_its_input(node: fx.Node, position: int) -> bool:
    """True if what is contracted is the input of the module that made the call: gates and masks are put there."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = list(stack.values())[-1] if stack else ("", "")
    if str(kind).startswith("torch.nn.modules."):
        return True
    source = node.args[position]
    while isinstance(source, fx.Node) and _made_in(source, path):
        if operation(source) not in ("pad", "constant_pad_nd", "to", "_to_copy", "contiguous", "clone", "view"):
            return False
        source = source.args[0]
    return True


def _made_in(node: fx.Node, path: str) -> bool:
    stack = node.meta.get("nn_module_stack") or {}
    return node.op == "call_function" and any(entry[0] == path for entry in stack.values())


@rule("index_select")
def index_select(engine: Engine, node: fx.Node) -> Result:
    """A stored selection of fixed features writes units: one per entry of the index. Units are selected by an index
    that is known, and stay for any other."""
    source, index = engine.value(node.args[0]), engine.value(node.args[2])
    dim = int(node.args[1]) % source.ndim  # type: ignore[arg-type]
    selected = selected_by(engine, source, dim, node.args[2], node)  # type: ignore[arg-type]
    if selected is not None:
        return selected
    shape = meta_shape(node.meta["val"])
    outputs = engine.parameter_plane(index, 0)
    planes = [p for p in source.planes if p.shape[dim] == 1]
    if index.parameter is None or outputs is None or source.varying(dim):
        engine.lock([*source.varying(dim), *index.planes], CHOSEN, node)
        return Value(shape, planes)
    record(engine, node, index, None, outputs, dim - source.ndim, 0, planes)
    return Value(shape, [*planes, along(outputs, dim, len(shape))])


@rule("embedding", ignores_zeros=True)
def embedding(engine: Engine, node: fx.Node) -> Result:
    """Rows looked up by index stay; the embedding width is labelled by the table's columns."""
    table = engine.value(node.args[0])
    shape = meta_shape(node.meta["val"])
    engine.lock(table.varying(0), "rows are looked up by index", node)
    outputs = engine.parameter_plane(table, 1)
    indices = engine.value(node.args[1])
    engine.lock(indices.planes, "units used as indices", node)
    return Value(shape, [] if outputs is None else [along(outputs, len(shape) - 1, len(shape))])
