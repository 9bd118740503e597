"""Normalisations: per-channel statistics are harmless, statistics across units make removal differ from masking."""

from __future__ import annotations

from torch import Tensor, fx

from prunus.graph.engine import Engine, Result, argument, meta_shape, operation
from prunus.graph.labels import Value, along
from prunus.graph.registry import rule
from prunus.graph.resizing import Resizing
from prunus.graph.zeros import written


@rule("batch_norm", rows=True, zeros=written, ignores_zeros=True, training=5)
@rule("instance_norm", rows=True, ignores_zeros=True, training=5)
@rule("cudnn_batch_norm", rows=True, ignores_zeros=True)
@rule("native_batch_norm", rows=True)
def per_channel(engine: Engine, node: fx.Node) -> Result:
    """Statistics and affine parameters of one channel each: `(input, weight, bias, running_mean, running_var, ...)`."""
    source = engine.value(node.args[0])
    dim = 1 if source.ndim > 1 else 0
    labels = engine.parameter_plane(source, dim)
    for index in range(1, 5):
        engine.unite_vector(argument(node, index, ""), labels, node)
    planes = [p for p in source.planes if p.shape[dim] == 1]
    engine.lock([p for p in planes if any(s > 1 for s in p.shape[dim + 1 :])], "normalised across units", node)
    if labels is not None:
        planes.append(along(labels, dim, source.ndim))
    return Value(meta_shape(node.meta["val"]), planes, rows=engine.adopt_along(source, dim, node))


@rule("group_norm")
def group_norm(engine: Engine, node: fx.Node) -> Result:
    """`(input, num_groups, weight, bias, eps)`: equal counts per group; statistics are shared inside a group."""
    source = engine.value(node.args[0])
    groups = int(argument(node, 1, "num_groups"))
    labels = engine.parameter_plane(source, 1)
    for name, index in (("weight", 2), ("bias", 3)):
        parameter = argument(node, index, name)
        engine.unite_vector(parameter, labels, node)
    if labels is not None and groups < source.shape[1]:
        if groups > 1:
            engine.equal_counts(labels.reshape(groups, -1), f"{groups} groups of a normalisation")
        _inexact(engine, source, labels, node)
    elif labels is not None:
        engine.lock([labels], "group norm with one channel per group counts its groups in a constant", node)
    return Value(meta_shape(node.meta["val"]), list(source.planes))


def _normalised_sizes(call: Resizing) -> None:
    """`(input, normalized_shape, ...)`."""
    before = call.before
    if before is not None:
        axes = len(call.arguments[1])
        sizes = enumerate(call.arguments[1])
        call.arguments[1] = [call.count(before, before.ndim - axes + d) or size for d, size in sizes]


@rule("layer_norm", "rms_norm", "_fused_rms_norm", "native_layer_norm", rows=True, rewrite=_normalised_sizes)
def layer_norm(engine: Engine, node: fx.Node) -> Result:
    """`(input, normalized_shape, weight, bias, eps)`: statistics over the last dimensions."""
    source = engine.value(node.args[0])
    count = len(argument(node, 1, "normalized_shape"))
    for plane in (*source.planes, *source.rows):
        if any(size > 1 for size in plane.shape[source.ndim - count :]):
            _inexact(engine, source, plane, node)
    parameters = [
        n for n in [*node.args[2:4], node.kwargs.get("weight"), node.kwargs.get("bias")] if isinstance(n, fx.Node)
    ]
    for parameter in parameters:
        if count == 1:
            engine.unite_vector(parameter, engine.parameter_plane(source, source.ndim - 1), node)
        else:
            engine.merge([source, engine.value(parameter)], source.shape, node)
    rows = engine.adopt_along(source, source.ndim - 1, node) if parameters else list(source.rows)
    return Value(source.shape, list(source.planes), rows=rows)


def _inexact(engine: Engine, source: Value, labels: Tensor, node: fx.Node) -> None:
    reason = f"{operation(node)} takes statistics across the units"
    engine.statistics_over([labels], reason, node, whole=not source.rows)
