"""What `prune` was asked for: refused before anything is learned if it can't be met, and held against the result."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from prunus.errors import BudgetError, ConfigError
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.plan.allocation import Allocation, check_reachable
from prunus.plan.budget import Budget
from prunus.plan.plan import Plan
from prunus.plan.rounding import uneven

SHOWN = 3
"""How many layers a refusal names."""


@dataclass(frozen=True)
class Request:
    """How much goes: one of budget, ratio and counts, or none for methods with a rule of their own.

    Attributes:
        budget: bounds to meet.
        ratio: fraction of all units that goes.
        counts: units to keep, by group name.
        allocation: how a budget or a ratio is shared out.
    """

    budget: Budget | None
    ratio: float | None
    counts: Mapping[str, int] | None
    allocation: Allocation


def requested(
    budget: str | Budget | None,
    ratio: float | None,
    counts: Mapping[str, int] | None,
    allocation: Allocation | None,
    *,
    optional: bool,
) -> Request:
    """The request as given, in one piece.

    Args:
        budget: as for `prune`.
        ratio: as for `prune`.
        counts: as for `prune`.
        allocation: as for `prune`.
        optional: none of the three may be given.

    Raises:
        ConfigError: none or several of the three, or an allocation that nothing would be shared out by.
        BudgetError: a budget that can't be read.
    """
    named = (("budget", budget), ("pruning_ratio", ratio), ("kept_counts", counts))
    given = [name for name, value in named if value is not None]
    if len(given) > 1 or not (given or optional):
        what = f"give exactly one of budget, pruning_ratio, kept_counts (got {given or 'none'})"
        raise ConfigError("budget", what, "budget='macs<=50%'")
    if allocation is not None and not isinstance(allocation, Allocation):
        raise ConfigError("allocation", f"{allocation!r} is none", "give prunus.Allocation(...)")
    if allocation is not None and given not in (["budget"], ["pruning_ratio"]):
        what = "counts by hand leave nothing to allocate" if given else "without a budget the method itself decides"
        raise ConfigError("allocation", what, "leave it out, or ask for a budget or a pruning_ratio")
    if counts is not None and not (isinstance(counts, Mapping) and counts):
        raise ConfigError("kept_counts", f"{counts!r} names no group", "give for example {'conv1': 16}")
    parsed = budget if budget is None or isinstance(budget, Budget) else Budget.parse(budget)
    return Request(parsed, ratio, counts, allocation or Allocation())


def _nothing(graph: Graph) -> ConfigError:
    """Why no unit may go: what is inexact, inside heads or ignored, or else the first layers with their reasons."""
    free = graph.groups(inexact=True)
    if free:
        names = ", ".join(g.name for g in free[:SHOWN])
        fix = "ignore fewer layers, or allow inexact=True or head_dims=True"
        return ConfigError("groups", f"there is nothing to score: {names} are ignored, inexact or inside heads", fix)
    lines = [str(line) for line in graph.unlisted] + graph.explain().splitlines()
    reasons = "; ".join(" ".join(line.removeprefix("locked").split()) for line in lines[:SHOWN])
    fix = "prunus.trace(model, example_inputs).explain() has a line for every layer"
    return ConfigError("groups", f"there is nothing to score: {reasons}", fix)


def check(request: Request, graph: Graph, groups: Sequence[ChannelGroup]) -> None:
    """Refuse what can't be met, whatever the scores.

    Raises:
        BudgetError: a budget or a ratio out of range or below what the floors allow, or counts that can't be kept.
        ConfigError: counts of a group that may not be pruned or is not there, or no group at all.
    """
    if not groups:
        raise _nothing(graph)
    if request.counts is None:
        if request.budget is not None or request.ratio is not None:
            check_reachable(
                graph, groups, budget=request.budget, pruning_ratio=request.ratio, allocation=request.allocation
            )
        return
    known = {g.name: g for g in groups}
    unknown = sorted(map(repr, set(request.counts) - set(known)))
    if unknown:
        choice = f"choose from: {', '.join(known)}" if known else "graph.explain() says what is locked and why"
        raise ConfigError(f"kept_counts {', '.join(unknown)}", "no prunable group of that name", choice)
    for name, count in request.counts.items():
        group, whole = known[name], isinstance(count, numbers.Integral) and not isinstance(count, bool)
        if not whole or not 1 <= count <= group.units or count % group.multiple:
            rows = f" in {group.multiple} rows" if group.multiple > 1 else ""
            raise BudgetError(
                f"kept_counts of {name!r}",
                f"cannot keep {count!r} of {group.units} units{rows}",
                f"give a whole number from {group.multiple} to {group.units}"
                + (f", a multiple of {group.multiple}" if group.multiple > 1 else ""),
            )


def remarks(
    plan: Plan,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    *,
    budget: Budget | None = None,
    pruning_ratio: float | None = None,
) -> list[str]:
    """How a plan meets its request, where its reader should know: the nearest there is, ties, nothing gone."""
    found = []
    total, kept = sum(g.units for g in groups), plan.kept
    gone = total - sum(len(kept.get(g.name, range(g.units))) for g in groups)
    if not gone:
        why = "the dense network meets the request already; " if budget is not None else ""
        found.append(f"{why}nothing is removed")
    if pruning_ratio is not None and abs(gone - pruning_ratio * total) >= 1:
        why = "whole rows, multiples (round_to=1 takes any count) and equal fractions allow no other number"
        found.append(f"{gone} of {total} units go, {gone / total:.1%} for {pruning_ratio:.1%}: {why}")
    if budget is not None and budget.excess(plan.after, plan.before) > 1:
        found.append("the cost of these very units is above the budget, which holds for units of average cost")
    found += filter(None, [uneven(groups, kept)])
    tied = [g.name for g in groups if _tied(scores[g.name], len(kept.get(g.name, range(g.units))))]
    if tied:
        found.append(f"equal scores in {', '.join(tied)}: which of these units stay is arbitrary, the same every time")
    return found


def _tied(scores: Any, kept: int) -> bool:
    """Whether the last unit that stays and the first that goes have one score."""
    line = np.sort(scores.detach().double().cpu().numpy())[::-1]
    return kept < len(line) and bool(line[kept - 1] == line[kept])
