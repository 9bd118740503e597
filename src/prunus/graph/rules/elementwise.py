"""Element-wise operations: the labels of the operands are united."""

from __future__ import annotations

from torch import fx

from prunus.graph.engine import Engine, Result, argument, meta_shape, meta_value, operation, rule
from prunus.graph.labels import Value


# torch leaves these, or their in-place forms, without its `pointwise` tag
@rule(
    "hardswish", "log_sigmoid", "masked_fill", "relu6", "mish", "gelu", "rrelu", "threshold", "abs", "absolute",
    "negative", "true_divide", "divide", "floor_divide", "multiply", "subtract", "rsub", "greater", "greater_equal",
    "less", "less_equal", "not_equal", "eq", "ne", "ge", "gt", "le", "lt", "copysign", "special_expit", "special_erf",
    "xlogy", "atan2", "fill", "zero", "where", "__and__", "__or__", "__xor__", "fake_quantize_per_tensor_affine",
    rows=True,
)  # fmt: skip
def pointwise(engine: Engine, node: fx.Node) -> Result:
    """Unite the operands' planes with broadcasting (every operation that torch tags `pointwise`)."""
    operands = [engine.value(n) for n in node.all_input_nodes]
    shape = meta_shape(node.meta["val"])
    return engine.combine([o for o in operands if o.shape], shape, node)


@rule(
    "alias", "clone", "contiguous", "detach", "detach_copy", "dropout", "alpha_dropout", "feature_dropout",
    "to", "_to_copy", "lift_fresh_copy", "type_as", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like",
    "randn_like", "native_dropout", "_assert_tensor_metadata", "view_as_real_copy", rows=True,
)  # fmt: skip
def same(engine: Engine, node: fx.Node) -> Result:
    """The output has the first operand's labels."""
    meta = node.meta.get("val")
    if meta is None:
        return Value(())
    source = engine.value(node.args[0])
    return Value(meta_shape(meta), list(source.planes), rows=list(source.rows))


@rule(
    "softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "sort", "argsort",
    rows=True,
)  # fmt: skip
def along_dimension(engine: Engine, node: fx.Node) -> Result:
    """Element-wise except along one dimension: units there are mixed, so they stay."""
    source = engine.value(node.args[0])
    dim = int(argument(node, 1, "dim", -1)) % source.ndim
    mixed = source.varying(dim)
    engine.lock([r for r in source.rows if r.shape[dim] > 1], f"{operation(node)} mixes the rows", node)
    engine.lock(mixed, f"{operation(node)} mixes the units", node, whole=not source.rows)
    result = meta_value(node.meta["val"])
    planes = [p for p in source.planes if not any(p is m for m in mixed)]
    if isinstance(result, list):
        return [Value(v.shape, planes, rows=list(source.rows)) for v in result]
    return Value(result.shape, planes, rows=list(source.rows))


@rule("prelu", "_prelu_kernel")
def prelu(engine: Engine, node: fx.Node) -> Result:
    """One slope per channel (dimension 1) or one for all."""
    source = engine.value(node.args[0])
    dim = 1 if source.ndim > 1 else 0
    if engine.value(node.args[1]).shape not in ((), (1,)):
        engine.unite_vector(argument(node, 1, "weight"), engine.parameter_plane(source, dim), node)
    return Value(meta_shape(node.meta["val"]), list(source.planes))


@rule("glu")
def glu(engine: Engine, node: fx.Node) -> Result:
    """Gated linear unit: the first half along a dimension times the sigmoid of the second."""
    source = engine.value(node.args[0])
    dim = int(argument(node, 1, "dim", -1)) % source.ndim
    half = source.shape[dim] // 2
    shape = meta_shape(node.meta["val"])
    planes = []
    for plane in source.planes:
        if plane.shape[dim] > 1:
            first, second = plane.narrow(dim, 0, half), plane.narrow(dim, half, half)
            engine.labels.unite(first, second)
            plane = first
        planes.append(plane)
    return Value(shape, planes)
