"""Budgets on what is measured: plan, cut, measure, and plan again with what was learned of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from prunus.errors import BudgetError
from prunus.learning.problem import Problem
from prunus.measure.gauged import measured, with_gauge
from prunus.measure.runtimes import check_runtime
from prunus.plan.budget import Budget
from prunus.plan.cost import Cost
from prunus.plan.plan import Plan
from prunus.plan.request import Request
from prunus.plan.resources import described
from prunus.proof.apply import apply_and_verify_
from prunus.runtime.arguments import as_arguments
from prunus.runtime.copies import copied
from prunus.runtime.modes import eval_mode
from prunus.surgery.cut import cut_

AGAIN, NEAR = 3, 0.05
"""A plan whose measured network is not within 5 % of its bounds is made again, at most so many times."""
MACHINE = "what is timed is true of this machine: another one, or a new table, may come to another plan"
SHALLOWER = "{} blocks could go whole, which may lose less at the same latency: allow=('blocks',), or --allow blocks"


def check_runtimes(request: Request) -> None:
    """Refuse a budget on a runtime that is not installed. Raises MissingDependencyError."""
    for limit in request.budget.limits if request.budget else ():
        if limit.setup is not None and limit.resource == "latency":
            check_runtime(limit.setup.runtime)


def with_measured(problem: Problem) -> Problem:
    """The problem with what its budget asks to be measured of the dense network, and bounds in absolute numbers.

    Raises:
        PruneError: the network does not run in the runtime.
    """
    budget = problem.request.budget
    setups = {limit.resource: limit.setup for limit in budget.limits if limit.setup} if budget else {}
    for resource, setup in setups.items():
        found = measured(
            resource, problem.model, problem.graph, problem.example_inputs, setup, progress=problem.progress
        )
        problem = replace(
            problem,
            graph=with_gauge(problem.graph, resource, found.gauge),
            measured=(*problem.measured, found),
        )
    return problem


@dataclass(frozen=True)
class _Tried:
    """A plan and what was measured of its network: the largest share of a bound, by what."""

    plan: Plan
    amounts: dict[str, float]
    excess: float


def met(problem: Problem, plan_of: Callable[[Problem], tuple[Plan, Problem]]) -> tuple[Plan, Problem]:
    """A plan whose network was measured to be within the budget, and the problem as it was solved.

    Args:
        problem: with what is to be measured; without any its first plan is the last.
        plan_of: the plan for a problem, and the problem with what need not be found out again.

    Raises:
        BudgetError: every plan missed it by more than 5 %.
    """
    budget = problem.request.budget
    if not problem.measured or budget is None:
        return plan_of(problem)
    aimed = {m.resource: m.aim for m in problem.measured}
    inner = replace(problem, request=replace(problem.request, budget=_lowered(budget, aimed)))
    tried: list[_Tried] = []
    for _ in range(1 + AGAIN):
        try:
            plan, inner = plan_of(inner)
        except BudgetError:
            if not tried:
                raise
            break  # by what was measured, no plan reaches it
        if any(plan.kept == other.plan.kept for other in tried):
            break
        smaller = cut(inner, plan)
        amounts = {m.resource: m.of(smaller) for m in inner.measured}
        after = Cost(**{**plan.after, **amounts})
        tried.append(_Tried(replace(plan, after=after), amounts, budget.excess(after, plan.before)))
        if 1 - NEAR <= tried[-1].excess <= 1 or _nothing_gone(plan):
            break
        inner = _corrected(inner, plan, amounts)
    best = _best(tried)
    if best.excess > 1 + NEAR:
        reached = ", ".join(described(name, amount) for name, amount in best.amounts.items())
        what = f"of {len(tried)} plans the nearest was measured to take {reached}, {best.excess:.1%} of a bound"
        raise BudgetError(f"budget {budget.text!r} is missed", what, "raise the budget, or measure on an idle machine")
    return best.plan.with_notes(*_notes(inner, best, len(tried))), replace(inner, request=problem.request)


def _lowered(budget: Budget, aimed: dict[str, float]) -> Budget:
    limits = (replace(limit, value=limit.value * aimed.get(limit.resource, 1.0)) for limit in budget.limits)
    return Budget(tuple(limits), budget.text)


def _best(tried: list[_Tried]) -> _Tried:
    """The largest network within the bounds, or the nearest beyond them."""
    within = [t for t in tried if t.excess <= 1]
    return max(within, key=lambda t: t.excess) if within else min(tried, key=lambda t: t.excess)


def _nothing_gone(plan: Plan) -> bool:
    return all(len(g.kept) == g.units for g in plan.groups)


def cut(problem: Problem, plan: Plan) -> nn.Module:
    """The network of a plan, to be measured: proven only where its own class does not run, and later anyway.

    Raises:
        SurgeryError: it can't be made.
    """
    smaller = copied(problem.model)
    undo = cut_(smaller, plan)
    args, kwargs = as_arguments(problem.example_inputs, smaller)
    try:
        with eval_mode(smaller), torch.no_grad():
            smaller(*args, **kwargs)
    except Exception:
        # Code that holds sizes: the proof tells it from every other reason.
        undo()
        rewrite = "own_class" not in problem.allow
        smaller = apply_and_verify_(smaller, plan, problem.example_inputs, rewrite_graph=rewrite)[0]
    return smaller


def _corrected(problem: Problem, plan: Plan, amounts: dict[str, float]) -> Problem:
    graph, found = problem.graph, []
    for one in problem.measured:
        gauge = one.gauge.corrected(one.count(graph, plan), amounts[one.resource])
        found.append(replace(one, gauge=gauge))
        graph = with_gauge(graph, one.resource, gauge)
    return replace(problem, graph=graph, measured=tuple(found))


def _notes(problem: Problem, best: _Tried, plans: int) -> list[str]:
    times = "once" if plans == 1 else f"for {plans} plans"
    notes = [
        f"{one.told}: {described(one.resource, one.dense)} -> {described(one.resource, best.amounts[one.resource])} "
        f"({best.amounts[one.resource] / one.dense:.1%}), measured {times}"
        for one in problem.measured
    ]
    if "latency" in best.amounts:
        notes.append(MACHINE)
        blocks = len(problem.graph.blocks.units)
        if blocks and "blocks" not in problem.allow:
            notes.append(SHALLOWER.format(blocks))
    return notes
