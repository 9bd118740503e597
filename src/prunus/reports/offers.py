"""What other budgets would have kept: the run's scores and its way of sharing out, at other shares of the MACs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from prunus.errors import BudgetError
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.graph.shallower import without_blocks
from prunus.learning.findings import Scores
from prunus.plan.allocation import Allocation, allocate
from prunus.plan.budget import Budget
from prunus.plan.cost import CostModel
from prunus.plan.plan import Plan

SHARES = tuple(percent / 100 for percent in range(95, 0, -5))
EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Of the global scope, how much the cost of a unit counts against its score."""


@dataclass(frozen=True)
class Offer:
    """A plan for a budget.

    Attributes:
        macs: what it costs.
        params: what it has.
        kept: units that stay, by group.
        loss: what the units that go were measured to cost together; None where nothing was measured.
        own: it is the run's own plan.
    """

    macs: int
    params: int
    kept: Mapping[str, int]
    loss: float | None = None
    own: bool = False


def offers_of(graph: Graph, plan: Plan, scores: Scores, allocation: Allocation | None, seed: int) -> tuple[Offer, ...]:
    """Plans for 95 %, 90 %, ... of the MACs as far as floors allow, and the run's own, from the largest down.

    Blocks and experts that the run's plan is without are gone in all of them.

    How the run shared its budget out (scope, exponent) is what gives its own counts at its own cost; if nothing does
    (counts by hand, equalised halves), the method's own exponent is taken.

    Args:
        graph: analysis of the dense network.
        plan: the run's own.
        scores: of its units; without any there are no offers.
        allocation: as it was asked for.
        seed: of the run.
    """
    graph = without_blocks(graph, plan.blocks)  # they go in every offer
    counts = {g.name: len(g.kept) for g in plan.groups if not g.block}
    groups = [g for g in graph.groups(locked=True, inexact=True) if g.name in scores.values and g.name in counts]
    if not groups or plan.patterns:
        return ()
    decided = {g.name: counts[g.name] for g in graph.experts if g.name in counts}  # they went before widths did
    ways = _ways(scores, allocation or Allocation(), plan.asked)
    values, settings = next((w for w in ways if _counts(graph, groups, plan, *w, seed, decided) == counts), ways[0])
    costs = CostModel(graph)
    own = Offer(plan.after.macs, plan.after.params, counts, _loss(groups, scores.measured, counts), own=True)
    found = [own]
    for share in SHARES:
        budget = Budget.parse(f"macs<={round(share * plan.before.macs)}")
        try:
            kept = decided | allocate(
                graph, groups, values, budget=budget, allocation=settings, seed=seed, decided=decided
            )
        except BudgetError:
            break
        if any(kept == offer.kept for offer in found):
            continue
        cost = costs.at(costs.counts(kept))
        found.append(Offer(cost.macs, cost.params, kept, _loss(groups, scores.measured, kept)))
    return tuple(sorted(found, key=lambda offer: (-offer.macs, not offer.own)))


def _ways(scores: Scores, asked: Allocation, text: str) -> list[tuple[Mapping[str, Tensor], Allocation]]:
    """Ways to share a budget out that the run may have taken, the method's own first."""
    if text.endswith(", measured") and scores.measured:
        return [(scores.measured, replace(asked, scope="measured", cost_exponent=None))]
    if text.endswith(", uniform"):
        return [(scores.values, replace(asked, scope="uniform", cost_exponent=None))]
    own = scores.cost_exponent if asked.cost_exponent is None else asked.cost_exponent
    exponents = [own] if asked.cost_exponent is not None else list(dict.fromkeys([own, *EXPONENTS]))
    return [(scores.values, replace(asked, scope="global", cost_exponent=e)) for e in exponents]


def _counts(
    graph: Graph,
    groups: Sequence[ChannelGroup],
    plan: Plan,
    values: Mapping[str, Tensor],
    settings: Allocation,
    seed: int,
    decided: Mapping[str, int],
) -> dict[str, int] | None:
    """What a way of sharing out gives for what the run was asked."""
    try:
        asked = plan.asked.removesuffix(f", {settings.scope}")
        ratio = float(asked.removeprefix("pruning_ratio=")) if asked.startswith("pruning_ratio=") else None
        budget = Budget.parse(asked) if ratio is None else None
        return dict(decided) | allocate(
            graph, groups, values, budget=budget, pruning_ratio=ratio, allocation=settings, seed=seed, decided=decided
        )  # fmt: skip
    except BudgetError:
        return None


def _loss(groups: Sequence[ChannelGroup], measured: Mapping[str, Tensor], kept: Mapping[str, int]) -> float | None:
    """The measured losses of what goes, added up over the groups."""
    if not all(g.name in measured for g in groups):
        return None
    return float(sum(measured[g.name].sort().values[: g.units - kept.get(g.name, g.units)].sum() for g in groups))
