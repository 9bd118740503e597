"""Whether a rewritten graph runs on images of another size than the examples': tried, and said."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from prunus.errors import first_line
from prunus.plan.plan import Plan
from prunus.proof.comparison import TOLERANCE, compare
from prunus.proof.observation import observe, observe_graph
from prunus.proof.reference import MaskedGraph
from prunus.surgery.rewritten import RewrittenModel


def try_another_size_(
    rewritten: RewrittenModel, model: nn.Module, plan: Plan, inputs: Any, graph: MaskedGraph | None
) -> tuple[str, ...]:
    """Compare on images of twice the height and width; if that is not proven, the graph keeps the examples' sizes.

    Args:
        rewritten: the rewritten graph; `takes` is narrowed where other sizes are not proven.
        model: the dense model.
        plan: what went.
        inputs: one batch, of the examples' size.
        graph: the masked graph, for inexact plans.

    Returns:
        A remark, if there are sizes to speak of.
    """
    leaves = tree_leaves(inputs)
    takes = rewritten.takes
    if takes is None or len(takes) != len(leaves) or not any(s is not None and None in s[2:] for s in takes):
        return ()
    larger = tree_map_only(Tensor, _doubled, inputs)
    problem: str | None
    try:
        if graph is None:
            right = observe(model, plan, [larger], mask=True, layers=False)
        else:
            right = observe_graph(graph, [larger], layers=False)
        now = observe(rewritten, plan, [larger], mask=False, layers=False)
        apart = compare(right.outputs, now.outputs, 1e-2)
        allowed = TOLERANCE.get(right.coarsest, TOLERANCE[torch.float32])
        problem = apart.problem or (None if apart.error <= allowed else f"it is off by {apart.error:.1e}")
    except Exception as failure:
        problem = first_line(failure)
    if problem is None:
        return ("images may have other sizes, proven at twice the height and width",)
    rewritten.takes = tuple(
        s if s is None or not isinstance(t, Tensor) else (*s[:2], *t.shape[2:])
        for s, t in zip(takes, leaves, strict=True)
    )
    return (f"images keep the size of the examples: at twice the size {problem}",)


def _doubled(value: Tensor) -> Tensor:
    if value.dim() < 4 or not value.is_floating_point():
        return value
    for dim in range(2, value.dim()):
        value = torch.cat([value, value.flip(dim)], dim)
    return value
