"""What each target would leave of a network, from shapes alone: no weights, no data, no scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from prunus.errors import BudgetError, ConfigError
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.plan.allocation import Allocation, allocate
from prunus.plan.budget import Budget
from prunus.plan.cost import Cost, CostModel

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
COUNTED = ("macs", "params", "weights")


@dataclass(frozen=True)
class Prospect:
    """One target.

    Attributes:
        target: the budget, as `prune` takes it.
        cost: of what stays; None where it can't be met.
        kept: units that stay, by group.
        refusal: why it can't be met, or "".
    """

    target: str
    cost: Cost | None
    kept: Mapping[str, int]
    refusal: str = ""


def outlook(
    graph: Graph,
    groups: Sequence[ChannelGroup],
    *,
    resource: str = "macs",
    shares: Sequence[float] = SHARES,
    allocation: Allocation | None = None,
) -> tuple[Prospect, ...]:
    """The costs of several targets, each met by the same share of every group.

    Which units go is not asked: what they cost depends on their number, to the average where it depends on more. With
    scores the shares of groups differ, and with them the costs that no bound was set on.

    Args:
        graph: of `prunus.trace`; the model may be on the device `meta`.
        groups: that may lose units.
        resource: what is bounded: `macs`, `params` or `weights`.
        shares: fractions of it.
        allocation: rounding and floor; the scope is `uniform`.

    Raises:
        ConfigError: a resource that has to be measured.
        BudgetError: nothing can be removed.

    Example:
        >>> from prunus.plan import outlook
        >>> graph = prunus.trace(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)), torch.randn(2, 8))
        >>> [(p.target, p.cost.macs) for p in outlook.outlook(graph, graph.groups(), shares=[0.5, 0.25])]
        [('macs<=50%', 384), ('macs<=25%', 192)]
    """
    if resource not in COUNTED:
        what = "it is measured of a network, not counted from shapes"
        raise ConfigError(f"resource {resource!r}", what, f"use one of {', '.join(COUNTED)}")
    if not groups:
        raise BudgetError("groups", "no group of this model may be pruned", "see graph.explain() for the reasons")
    costs, alike = CostModel(graph), {g.name: torch.zeros(g.units) for g in groups}
    settings = Allocation(
        "uniform",
        **({} if allocation is None else {"round_to": allocation.round_to, "floor": allocation.floor}),  # type: ignore[arg-type]
    )
    found: list[Prospect] = []
    for share in shares:
        text = f"{resource}<={100 * share:g}%"
        try:
            kept = allocate(graph, groups, alike, budget=Budget.parse(text), allocation=settings)
        except BudgetError as refusal:
            found.append(Prospect(text, None, {}, refusal.what))
        else:
            found.append(Prospect(text, costs.at(costs.counts(kept)), kept))
    return tuple(found)
