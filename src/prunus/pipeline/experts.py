"""Experts and widths together: how many experts of each layer go, and how narrow the rest becomes for the budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from prunus.errors import BudgetError, ConfigError
from prunus.graph.groups import ChannelGroup
from prunus.layers.submodules import matching
from prunus.learning.findings import Scores
from prunus.learning.problem import Problem
from prunus.methods.base import Method, RoutingCriterion
from prunus.pipeline.planning import make_plan, scored
from prunus.plan.allocation import allocate
from prunus.plan.budget import Budget, Limit
from prunus.plan.cost import Cost, CostModel
from prunus.plan.plan import Plan
from prunus.plan.request import EXPERTS, SHOWN, remarks
from prunus.plan.resources import described
from prunus.refit.prepared import Prepared

LITTLE = 0.25
"""Experts go for a resource of which they save more than so much of the share that they save of the parameters."""


def open_experts(problem: Problem, method: Method) -> list[ChannelGroup]:
    """The groups of experts that may lose some: none unless asked for, none of ignored layers.

    Raises:
        ConfigError: they were asked for, and there are none, or blocks are to share a budget with them; or the method
            judges nothing but experts, and they were not asked for.
    """
    if "experts" not in problem.allow:
        if isinstance(method, RoutingCriterion):
            what = f"method {method.name!r} judges experts alone, and none may go"
            raise ConfigError("allow", what, "give allow=('experts',), or use another method")
        return []
    if "blocks" in problem.allow and problem.request.counts is None:
        what = "blocks and experts share no budget"
        fix = "name both by hand (target={'layers.1': 0, ...}), or prune twice: the experts of what the first call made"
        raise ConfigError("allow 'experts'", what, fix)
    ignored = matching(problem.ignored_layers, problem.model)
    groups = [g for g in problem.graph.experts if not any(_holds(name, g) for name in ignored)]
    free = [g for g in groups if g.locked is None]
    if not free:
        locked = [f"{g.name}: {g.locked}" for g in groups if g.locked]
        what = "; ".join(locked[:SHOWN]) or "the model has no router that chooses among experts, or all are ignored"
        raise ConfigError("allow 'experts'", what, "leave it out")
    return free


def _holds(ignored: str, group: ChannelGroup) -> bool:
    assert group.routing is not None
    return f"{group.name}.".startswith(f"{ignored}.") or f"{group.routing.module}.".startswith(f"{ignored}.")


def planned_with_experts(
    problem: Problem,
    groups: list[ChannelGroup],
    experts: Sequence[ChannelGroup],
    method: Method,
    prepared: Prepared | None,
) -> tuple[Plan, Scores]:
    """The plan asked for: experts go first, the same share of every layer's, and widths for what they can't meet.

    A configuration has one number of experts for all layers, so that what lost nothing but experts is loaded by the
    class itself. A budget takes no more experts than leave each token as many as it was given; one on `experts` alone
    takes more, and nothing else. Of what experts don't take less of (multiplications, as long as a token is given as
    many) widths alone make room.

    Raises:
        BudgetError: a budget that can't be met.
    """
    request, graph = problem.request, problem.graph
    if isinstance(method, RoutingCriterion):
        groups = []
    if request.counts is not None:
        asked = [g for g in (*experts, *groups) if g.name in request.counts]
        _, scores = scored(problem, asked, method, prepared)
        return make_plan(graph, asked, scores, kept_counts=request.counts, seed=problem.seed), scores
    budget = request.budget
    assert budget is not None
    counts, rest = _experts_left(problem, experts, budget)
    if rest and not groups:
        raise _unreachable(problem, counts, budget)
    whole = all(counts[g.name] == g.units for g in experts)
    judged = [*([] if whole else experts), *(groups if rest else [])]
    settings, scores = scored(problem, judged, method, prepared)
    if rest:
        settings = replace(settings, scope="global") if settings.scope in ("auto", "measured") else settings
        counts |= allocate(
            graph, groups, scores.values, budget=budget, allocation=settings, seed=problem.seed, decided=counts
        )  # fmt: skip
    plan = make_plan(graph, judged, scores, kept_counts=counts, seed=problem.seed)
    notes = [n for n in remarks(plan, judged, scores.values, budget=budget) if n not in plan.notes]
    stay = [f"all experts stay: without them {budget.text!r} is no nearer"] if whole and rest else []
    return replace(plan, asked=budget.text).with_notes(*notes, *stay), scores


def _experts_left(problem: Problem, experts: Sequence[ChannelGroup], budget: Budget) -> tuple[dict[str, int], bool]:
    """How many experts of each layer stay, and whether something else has to go too."""
    costs = CostModel(problem.graph)
    dense, direct = costs.dense(), any(limit.resource == EXPERTS for limit in budget.limits)
    tried = list(_numbers(experts, direct))
    least = costs.at(costs.counts(tried[-1]))
    bounds = [x for x in budget.limits if (x.resource == EXPERTS if direct else _held(x, least, dense))]
    alone = replace(budget, limits=tuple(bounds))
    counts = tried[0]
    for counts in tried if bounds else ():
        if alone.excess(costs.at(costs.counts(counts)), dense) <= 1:
            break
    met = budget.excess(costs.at(costs.counts(counts)), dense) <= 1
    if not met and direct and alone.excess(costs.at(costs.counts(counts)), dense) > 1:
        raise _unreachable(problem, counts, alone)
    return counts, not met


def _held(limit: Limit, least: Cost, dense: Cost) -> bool:
    """Whether experts take some of what is bounded: of multiplications none go while a token is given as many."""
    saved = 1 - limit.of(least) / limit.of(dense)
    return saved > LITTLE * (1 - least.params / dense.params)


def _numbers(experts: Sequence[ChannelGroup], direct: bool) -> Iterator[dict[str, int]]:
    """Ever fewer experts, the same share in every layer."""
    most = max(g.units for g in experts)
    for number in range(most, 0, -1):
        counts = {g.name: max(_least(g, direct), _whole(g, number / most)) for g in experts}
        yield counts
        if all(counts[g.name] == _least(g, direct) for g in experts):
            return


def _whole(group: ChannelGroup, share: float) -> int:
    return math.floor(share * group.units / group.multiple + 1e-9) * group.multiple


def _least(group: ChannelGroup, direct: bool) -> int:
    assert group.routing is not None
    least = group.routing.least if direct else max(group.routing.least, group.routing.choices)
    return min(math.ceil(least / group.multiple) * group.multiple, group.units)


def _unreachable(problem: Problem, counts: dict[str, int], budget: Budget) -> BudgetError:
    costs = CostModel(problem.graph)
    least, dense = costs.at(costs.counts(counts)), costs.dense()
    worst = max(budget.limits, key=lambda limit: limit.of(least) / limit.bound(dense))
    name = worst.resource
    fewest = min(counts.values())
    what = f"with {fewest} experts in a layer, the fewest for this, {name} is {described(name, least[name])}"
    if counts == {g.name: g.units for g in problem.graph.experts}:
        what = f"fewer experts take no less of {name}: a token is given as many"
    fix = "raise the budget, or bound the experts themselves: target='experts<=25%'"
    if all(limit.resource == EXPERTS for limit in budget.limits):
        fix = f"the routers' code needs so many: ask for 'experts<={fewest}'"
    return BudgetError(f"budget {budget.text!r} cannot be met", what, fix)
