"""What is refused of a target before anything is measured or learned: a look at the model alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from prunus.graph.trace import trace
from prunus.layers.submodules import Ignored
from prunus.pipeline.planning import prunable_groups
from prunus.plan.cost import CostModel
from prunus.plan.request import Allow, Request, check, check_asked_for


def check_early(
    model: nn.Module,
    example_inputs: Any,
    request: Request,
    opened: Collection[Allow],
    ignored_layers: Sequence[Ignored],
) -> int:
    """Refuse a target of units that no plan can meet, and layers that are not there; how many groups may be pruned.

    Raises:
        BudgetError: a target that can't be met, whatever is learned.
        ConfigError: groups or layers that are not there, or nothing that may go.
        TraceError: the model can't be analysed.
    """
    graph = trace(model, example_inputs, follow_branches="follow_branches" in opened)
    groups = prunable_groups(graph, model, ignored_layers, head_dims="head_dims" in opened, inexact="inexact" in opened)
    check_asked_for(request, graph, opened)
    known = CostModel(graph).dense()
    measured = request.budget is not None and any(limit.resource not in known for limit in request.budget.limits)
    # What is measured, and what whole blocks or experts make room for, comes later.
    if not measured and not {"blocks", "experts"} & set(opened):
        check(request, graph, groups)
    return len(groups)
