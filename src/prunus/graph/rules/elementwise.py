"""Element-wise operations: the labels of the operands are united."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from prunus.graph.engine import Engine, Result, argument, meta_shape, meta_value, operation
from prunus.graph.labels import Value
from prunus.graph.registry import rule
from prunus.graph.rules.creation import unknown
from prunus.graph.zeros import factors, powered, spread, stay, terms


@rule(
    "neg", "negative", "relu", "gelu", "silu", "tanh", "abs", "absolute", "square", "sqrt", "sign", "relu6",
    "leaky_relu", "elu", "selu", "celu", "mish", "hardswish", "softshrink", "hardshrink", "erf", "sin",
    "sinh", "asinh", "atan", "expm1", "log1p", "ceil", "floor", "round",
    rows=True, zeros=stay, ignores_zeros=True,
)  # fmt: skip
@rule("pow", rows=True, zeros=powered, ignores_zeros=True)
@rule("mul", "multiply", rows=True, zeros=factors, ignores_zeros=True)
@rule("div", "divide", "true_divide", rows=True, zeros=spread, ignores_zeros=True)
@rule("add", "sub", "subtract", rows=True, zeros=terms, ignores_zeros=True)
@rule(  # torch leaves these, or their in-place forms, without its `pointwise` tag
    "log_sigmoid", "masked_fill", "rrelu", "threshold", "floor_divide", "rsub", "greater", "greater_equal", "less",
    "less_equal", "not_equal", "eq", "ne", "ge", "gt", "le", "lt", "copysign", "special_expit", "special_erf", "xlogy",
    "atan2", "fill", "zero", "where", "__and__", "__or__", "__xor__", "fake_quantize_per_tensor_affine",
    rows=True, ignores_zeros=True,
)  # fmt: skip
def pointwise(engine: Engine, node: fx.Node) -> Result:
    """Unite the operands' planes with broadcasting (every operation that torch tags `pointwise`)."""
    if not isinstance(node.meta["val"], Tensor):  # places where a condition holds
        return unknown(engine, node)
    operands = [engine.value(n) for n in node.all_input_nodes]
    shape = meta_shape(node.meta["val"])
    return engine.combine([o for o in operands if o.shape], shape, node)


@rule("alias", "clone", "contiguous", "detach", "to", "_to_copy", "type_as", rows=True, zeros=stay, ignores_zeros=True)
@rule("dropout", "alpha_dropout", "feature_dropout", rows=True, zeros=stay, ignores_zeros=True, training=2)
@rule(
    "detach_copy", "lift_fresh_copy", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like",
    "native_dropout", "_assert_tensor_metadata", "view_as_real_copy", rows=True, ignores_zeros=True,
)  # fmt: skip
def same(engine: Engine, node: fx.Node) -> Result:
    """The output has the first operand's labels."""
    meta = node.meta.get("val")
    if meta is None:
        return Value(())
    source = engine.value(node.args[0])
    if source.parameter is not None and not operation(node).endswith("_like"):
        return source  # a cast or a copy of a stored tensor is that tensor
    return Value(meta_shape(meta), list(source.planes), rows=list(source.rows))


@rule(
    "softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "sort", "argsort",
    rows=True, ignores_zeros=True,
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


@rule("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_fftn",
      "fft_ifftn", "fft_rfftn", "fft_irfftn", "_fft_r2c", "_fft_c2c", "_fft_c2r", "fft_fftshift", "fft_ifftshift",
      rows=True, ignores_zeros=True)  # fmt: skip
def transform(engine: Engine, node: fx.Node) -> Result:
    """A Fourier transform mixes positions along its dimensions; units along others pass."""
    source = engine.value(node.args[0])
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    name = "dims" if "dims" in names else "dim"
    default: Any = -1 if operation(node)[-1] in "tf" else None
    given = argument(node, names.index(name), name, [-2, -1] if operation(node).endswith("2") else default)
    dims = range(source.ndim) if given is None else given if isinstance(given, list | tuple) else [given]
    over = {int(d) % source.ndim for d in dims}
    kinds = ([p for p in kind if not any(p.shape[d] > 1 for d in over)] for kind in (source.planes, source.rows))
    planes, rows = kinds
    mixed = [p for p in (*source.planes, *source.rows) if any(p.shape[d] > 1 for d in over)]
    engine.lock(mixed, f"{operation(node)} mixes the units", node)
    return Value(meta_shape(node.meta["val"]), planes, rows=rows)


@rule("prelu", zeros=stay, ignores_zeros=True)
@rule("_prelu_kernel", ignores_zeros=True)
def prelu(engine: Engine, node: fx.Node) -> Result:
    """One slope per channel (dimension 1) or one for all."""
    source = engine.value(node.args[0])
    dim = 1 if source.ndim > 1 else 0
    if engine.value(node.args[1]).shape not in ((), (1,)):
        engine.unite_vector(argument(node, 1, "weight"), engine.parameter_plane(source, dim), node)
    return Value(meta_shape(node.meta["val"]), list(source.planes))


@rule("glu", ignores_zeros=True)
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
