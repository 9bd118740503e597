"""Reductions and pooling: harmless over positions; over units they lock (removing one changes the result).

A mean or variance is a statistic to normalise with, as in an RMSNorm written out: units behind it may go when asked. A
sum or a norm over units is not changed by zeros: removal is masking if the mask stands before it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from prunus.graph.engine import (
    Engine,
    Result,
    argument,
    meta_shape,
    meta_value,
    operation,
)
from prunus.graph.labels import Value, owned, varying_dims
from prunus.graph.registry import rule
from prunus.graph.zeros import reduced

STATISTICS = ("mean", "var", "std", "var_mean", "std_mean", "nanmean")
SUMS = ("sum", "nansum", "count_nonzero", "any")
NORMS = ("norm", "linalg_vector_norm")


@rule("mean", "amax", "amin", rows=True, zeros=reduced)
@rule("sum", "norm", "linalg_vector_norm", rows=True, zeros=reduced, ignores_zeros=True)
@rule("max", "min", "var", "std", "var_mean", "std_mean", "prod", "any", "all", "argmax", "argmin", "logsumexp",
      "median", "topk", "nansum", "nanmean", "count_nonzero", rows=True)  # fmt: skip
def reduce(engine: Engine, node: fx.Node) -> Result:
    """A reduction over `dim` (all dimensions if absent)."""
    if len(node.all_input_nodes) > 1:
        return _max_of_two(engine, node)
    source = engine.value(node.all_input_nodes[0])
    result = meta_value(node.meta["val"])
    shapes = [v.shape for v in result] if isinstance(result, list) else [result.shape]
    dims = _dims(node, source.ndim)
    whole = len(shapes[0]) == source.ndim
    reason = f"{operation(node)} over the units"
    rows = [r for r in source.rows if not any(r.shape[d] > 1 for d in dims)]
    mixed_rows = [r for r in source.rows if not any(r is kept for kept in rows)]
    statistic = operation(node) in STATISTICS
    if statistic and len(dims) == 1 and whole:
        engine.statistics_over(mixed_rows, reason, node)
    else:
        engine.lock(mixed_rows, reason, node)
    planes = []
    for plane in source.planes:
        over = [d for d in dims if plane.shape[d] > 1]
        if not over:
            planes.append(plane)
        elif len(over) < len(varying_dims(plane)) and not (owned(plane) in dims and (statistic or _adds(node))):
            planes.append(_over_part(engine, plane, over, rows))
        elif _adds(node):
            engine.sum_over(plane, node, (node.all_input_nodes[0],), length=True)
        elif statistic:
            engine.statistics_over([plane], reason, node, whole=not source.rows)
        else:
            engine.lock([plane], reason, node, whole=not source.rows)

    def left(kind: list[Tensor]) -> list[Tensor]:
        if whole:
            return list(kind)
        return [p.reshape([s for d, s in enumerate(p.shape) if d not in dims]) for p in kind]

    values = [Value(shape, left(planes), rows=left(rows)) for shape in shapes]
    return values if isinstance(result, list) else values[0]


def _over_part(engine: Engine, plane: Tensor, over: list[int], rows: list[Tensor]) -> Tensor:
    """Units reduced over a part of the dimensions of a reshape (maxout): those reduced together go together.

    Where they are all that a whole row has, they stand for the row.
    """
    tied = engine.labels.tie(plane, over)
    rows[:] = [r for r in rows if r.shape != tied.shape]
    return tied


def _adds(node: fx.Node) -> bool:
    """True if zeros change nothing: a sum, or a norm that is not one of the smallest entries."""
    if operation(node) not in NORMS:
        return operation(node) in SUMS
    order = argument(node, 1, "p" if operation(node) == "norm" else "ord", 2)
    return order is None or (isinstance(order, int | float) and order >= 0)


def _max_of_two(engine: Engine, node: fx.Node) -> Result:
    shape = meta_shape(node.meta["val"])
    return engine.combine([engine.value(n) for n in node.all_input_nodes], shape, node)


def _dims(node: fx.Node, ndim: int) -> set[int]:
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    given: Any = node.kwargs.get("dim")
    if "dim" in names and len(node.args) > names.index("dim"):
        given = node.args[names.index("dim")]
    if given is None or given == []:
        return set(range(ndim))
    return {int(d) % ndim for d in (given if isinstance(given, list | tuple) else [given])}


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
    zeros=reduced, ignores_zeros=True,
)  # fmt: skip
@rule(
    "fractional_max_pool2d", "fractional_max_pool3d", "_adaptive_avg_pool2d",
    "upsample_linear1d", "upsample_bicubic2d", "upsample_trilinear3d",
    ignores_zeros=True,
)  # fmt: skip
@rule("reflection_pad1d", "reflection_pad2d", "replication_pad2d", "_upsample_bilinear2d_aa", "grid_sampler")
def pool(engine: Engine, node: fx.Node) -> Result:
    """Positions are pooled or resampled, channels (dimension 1) pass through."""
    source = engine.value(node.args[0])
    channel = 1 if source.ndim > 2 else 0
    engine.lock([p for p in source.planes if any(s > 1 for s in p.shape[channel + 1 :])], "pooled over units", node)
    planes = [p for p in source.planes if all(s == 1 for s in p.shape[channel + 1 :])]
    result = meta_value(node.meta["val"])
    if isinstance(result, list):
        return [Value(v.shape, planes) for v in result]
    return Value(result.shape, planes)
