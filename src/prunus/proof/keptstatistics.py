"""Means, variances and norms over the elements that stay of a tensor whose other elements are zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

Statistic = Callable[[fx.Node, Tensor, Sequence[Any], Mapping[str, Any]], Any]


def _bound(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by their names in the operation's schema, those that were left out with their defaults."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((a.name for a in schema), args, strict=False)) | dict(kwargs)
    return {a.name: given.get(a.name, a.default_value) for a in schema}


def _dims(x: Tensor, dims: Any) -> list[int]:
    if dims is None or dims == []:
        return list(range(x.dim()))
    return [int(d) % x.dim() for d in (dims if isinstance(dims, list | tuple) else [dims])]


def _mean(x: Tensor, there: Tensor, dims: list[int], keep: bool = True) -> tuple[Tensor, Tensor]:
    """Mean over `dims` of what is there, and how many that are; zeros stand for what is not."""
    number = there.expand(x.shape).sum(dims, keepdim=keep).clamp_min(1)
    return torch.where(there, x, torch.zeros_like(x)).sum(dims, keepdim=keep) / number, number


def _variance(x: Tensor, there: Tensor, dims: list[int], correction: float) -> tuple[Tensor, Tensor]:
    mean, number = _mean(x, there, dims)
    apart = torch.where(there, x - mean, torch.zeros_like(x))
    return apart.square().sum(dims, keepdim=True) / (number - correction).clamp_min(0), mean


def mean(node: fx.Node, there: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """`aten.mean`."""
    given = _bound(node, args, kwargs)
    x: Tensor = args[0] if given.get("dtype") is None else args[0].to(given["dtype"])
    return _mean(x, there, _dims(x, given.get("dim")), bool(given.get("keepdim")))[0]


def variance(node: fx.Node, there: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`aten.var`, `std`, `var_mean`, `std_mean` in all their overloads."""
    given, x = _bound(node, args, kwargs), args[0]
    correction = given.get("correction")
    if correction is None:
        correction = float(given.get("unbiased") is not False)
    dims, keep = _dims(x, given.get("dim")), bool(given.get("keepdim"))
    spread, middle = _variance(x, there, dims, float(correction))
    name = node.target._schema.name  # type: ignore[union-attr]
    spread = spread.sqrt() if "std" in name else spread
    shape = spread.shape if keep else [s for d, s in enumerate(spread.shape) if d not in dims]
    spread, middle = spread.reshape(shape), middle.reshape(shape)
    return (spread, middle) if name.endswith("_mean") else spread


def layer_norm(node: fx.Node, there: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`aten.layer_norm` and `native_layer_norm`."""
    given, x = _bound(node, args, kwargs), _at_least_single(args[0])
    dims = list(range(x.dim() - len(given["normalized_shape"]), x.dim()))
    spread, middle = _variance(x, there, dims, 0)
    factor = (spread + given["eps"]).rsqrt()
    result = _affine((x - middle) * factor, given).to(args[0].dtype)
    return (result, middle, factor) if "native" in node.target._schema.name else result  # type: ignore[union-attr]


def rms_norm(node: fx.Node, there: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`aten.rms_norm` and `_fused_rms_norm`."""
    given, x = _bound(node, args, kwargs), _at_least_single(args[0])
    dims = list(range(x.dim() - len(given["normalized_shape"]), x.dim()))
    eps = torch.finfo(args[0].dtype).eps if given.get("eps") is None else given["eps"]
    factor = (_mean(x.square(), there, dims)[0] + eps).rsqrt()
    result = _affine(x * factor, given).to(args[0].dtype)
    return (result, factor) if "fused" in node.target._schema.name else result  # type: ignore[union-attr]


def group_norm(node: fx.Node, there: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """`aten.group_norm`."""
    given, x = _bound(node, args, kwargs), _at_least_single(args[0])
    groups = int(given["num_groups"])
    apart, present = (t.reshape(t.shape[0], groups, -1) for t in (x, there.expand(x.shape)))
    spread, middle = _variance(apart, present, [2], 0)
    normed = ((apart - middle) * (spread + given["eps"]).rsqrt()).reshape(x.shape)
    channels = [1, -1, *[1] * (x.dim() - 2)]
    shaped = {k: given[k] if given.get(k) is None else given[k].reshape(channels) for k in ("weight", "bias")}
    return _affine(normed, shaped).to(args[0].dtype)


def _at_least_single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _affine(x: Tensor, given: Mapping[str, Any]) -> Tensor:
    if given.get("weight") is not None:
        x = x * given["weight"]
    return x if given.get("bias") is None else x + given["bias"]


STATISTICS: dict[str, Statistic] = {
    "mean": mean, "var": variance, "std": variance, "var_mean": variance, "std_mean": variance,
    "layer_norm": layer_norm, "native_layer_norm": layer_norm, "rms_norm": rms_norm, "_fused_rms_norm": rms_norm,
    "group_norm": group_norm,
}  # fmt: skip
"""Operations that count what they are given."""
