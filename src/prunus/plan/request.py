"""What `prune` was asked for: refused before anything is learned if it can't be met, and held against the result."""

from __future__ import annotations

import numbers
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from prunus.errors import BudgetError, ConfigError
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.plan.allocation import Allocation, check_reachable
from prunus.plan.budget import Budget
from prunus.plan.plan import Plan
from prunus.plan.promise import MEANT as PROMISE
from prunus.plan.promise import Promise
from prunus.plan.rounding import uneven

EXPERTS = "experts"
"""The resource that counts experts, and what `allow` calls them."""
SHOWN = 3
"""How many layers a refusal names."""


Target = str | Budget | Promise | float | Mapping[str, int] | Mapping[str, str]
"""How much goes: bounds (`"macs<=50%"`), a fraction of all units, counts by group, a pattern, or patterns by layer; or
how little may be lost (`"accuracy>=dense-1%@95%"`)."""
Allow = Literal["head_dims", "inexact", "follow_branches", "own_class", "blocks", "experts"]
"""What goes beyond, or stays within, the ordinary; see `prune`."""
ALLOW: tuple[Allow, ...] = get_args(Allow)
Kind = Literal["budget", "promise", "ratio", "counts", "pattern"]
MEANT: dict[Kind, str] = {
    "budget": "a budget",
    "promise": "a promise",
    "ratio": "a fraction of the units",
    "counts": "counts by hand",
    "pattern": "a pattern inside weights",
}
SPELLED: dict[Kind, str] = {
    "budget": "'macs<=50%'",
    "promise": "'accuracy>=dense-1%@95%'",
    "ratio": "0.5",
    "counts": "{'conv1': 16}",
    "pattern": "'weight 10%' or '2:4'",
}
PATTERN = re.compile(r"\s*(\d+\s*:\s*\d+|(weight|kernel|filter|tap|tile)\s)", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """How much goes: one of budget, promise, ratio, counts and patterns, or none for methods with a rule of their own.

    Attributes:
        budget: bounds to meet.
        ratio: fraction of all units that goes.
        counts: units to keep, by group name.
        allocation: how a budget or a ratio is shared out.
        patterns: what stays inside weights: one pattern for all layers, or one by layer.
        promise: how much worse the smallest network may be.
    """

    budget: Budget | None
    ratio: float | None
    counts: Mapping[str, int] | None
    allocation: Allocation
    patterns: str | Mapping[str, str] | None = None
    promise: Promise | None = None


def requested(
    target: Target | None,
    allocation: Allocation | None,
    *,
    method: str,
    takes: Sequence[Kind],
    optional: bool,
) -> Request:
    """The request as given, in one piece.

    Args:
        target: as for `prune`.
        allocation: as for `prune`.
        method: its name, for the refusals.
        takes: kinds of targets that it can do something with.
        optional: it has a rule of its own, and no target may be given.

    Raises:
        ConfigError: no target, or one that is none or not of the method's kind; an allocation that nothing would be
            shared out by.
        BudgetError: a budget that can't be read.
    """
    forms = " or ".join(SPELLED[kind] for kind in takes)
    if target is None and not optional:
        raise ConfigError("target", f"method {method!r} has to be told how much goes", f"give target={forms}")
    kind = None if target is None else _kind(target, takes)
    if kind is not None and kind not in takes:
        what = f"it is {MEANT[kind]}, which method {method!r} can't take"
        raise ConfigError(f"target {target!r}", what, f"give target={forms}, or use a method of another kind")
    if kind == "ratio" and not 0 < float(target) < 1:  # type: ignore[arg-type]
        raise BudgetError(f"target {target!r}", "it is no fraction of the units", "give a number between 0 and 1")
    if allocation is not None and not isinstance(allocation, Allocation):
        raise ConfigError("allocation", f"{allocation!r} is none", "give prunus.Allocation(...)")
    if allocation is not None and kind not in ("budget", "promise", "ratio"):
        what = "counts by hand leave nothing to allocate" if kind else "without a budget the method itself decides"
        what = "patterns leave nothing to allocate" if "pattern" in takes else what
        fix = "leave it out" if "pattern" in takes else "leave it out, or ask for a budget or a fraction of the units"
        raise ConfigError("allocation", what, fix)
    found: Any = target
    if isinstance(target, str) and kind in ("budget", "promise"):
        found = Budget.parse(target) if kind == "budget" else Promise.parse(target)
    return Request(
        budget=found if kind == "budget" else None,
        ratio=found if kind == "ratio" else None,
        counts=found if kind == "counts" else None,
        allocation=allocation or Allocation(),
        patterns=found if kind == "pattern" else None,
        promise=found if kind == "promise" else None,
    )


def _kind(target: Any, takes: Sequence[Kind]) -> Kind:
    """Which kind of target it is, by its form. Raises ConfigError if it is of none."""
    if isinstance(target, Budget):
        return "budget"
    if isinstance(target, Promise) or (isinstance(target, str) and PROMISE.match(target)):
        return "promise"
    if isinstance(target, str):
        if PATTERN.match(target) or ("=" not in target and "budget" not in takes):
            return "pattern"
        return "budget"
    if isinstance(target, Mapping) and target:
        return "pattern" if all(isinstance(v, str) for v in target.values()) else "counts"
    if isinstance(target, numbers.Real) and not isinstance(target, bool):
        return "ratio"
    what = "it names no group" if isinstance(target, Mapping) else f"a {type(target).__name__} says nothing"
    raise ConfigError(f"target {target!r}", what, f"give target={' or '.join(SPELLED[kind] for kind in takes)}")


def allowed(allow: Sequence[Allow], *, method: str, takes: Sequence[Allow]) -> frozenset[Allow]:
    """What `allow` names.

    Raises:
        ConfigError: no sequence of names, or one that is not known or that the method can do nothing with.
    """
    if isinstance(allow, str) or not isinstance(allow, Collection):
        raise ConfigError("allow", f"{allow!r} is no list of names", f"give for example allow=({ALLOW[0]!r},)")
    for name in allow:
        if name not in ALLOW:
            raise ConfigError(f"allow {name!r}", "there is no such thing", f"use some of {', '.join(ALLOW)}")
        if name not in takes:
            fix = f"leave it out; it takes {', '.join(takes) or 'none'}"
            raise ConfigError(f"allow {name!r}", f"method {method!r} has no use for it", fix)
    return frozenset(allow)


def _nothing(graph: Graph) -> ConfigError:
    """Why no unit may go: what is inexact, inside heads or ignored, or else the first layers with their reasons."""
    free = graph.groups(inexact=True)
    if free:
        names = ", ".join(g.name for g in free[:SHOWN])
        fix = "ignore fewer layers, or open them: allow=('inexact', 'head_dims')"
        return ConfigError("groups", f"there is nothing to score: {names} are ignored, inexact or inside heads", fix)
    lines = [str(line) for line in graph.unlisted] + graph.explain().splitlines()
    reasons = "; ".join(" ".join(line.removeprefix("locked").split()) for line in lines[:SHOWN])
    fix = "prunus.trace(model, example_inputs).explain() has a line for every layer"
    return ConfigError("groups", f"there is nothing to score: {reasons}", fix)


def check_asked_for(request: Request, graph: Graph, opened: Collection[str]) -> None:
    """Refuse a target of experts that may not go.

    Args:
        request: what is asked.
        graph: the analysed model.
        opened: what `allow` names.

    Raises:
        ConfigError: `allow` does not name experts, or the model has none.
    """
    named = {g.name for g in graph.experts} & set(request.counts or ())
    bounded = request.budget is not None and any(limit.resource == EXPERTS for limit in request.budget.limits)
    if EXPERTS in opened or not (named or bounded):
        return
    where = (
        f"target {', '.join(map(repr, sorted(named)))}" if request.budget is None else f"budget {request.budget.text!r}"
    )
    if not graph.experts:
        what = "the model has no router that chooses among experts"
        raise ConfigError(where, what, "bound another resource, such as 'params<=50%'")
    raise ConfigError(where, "experts go only if asked for", "add allow=('experts',), or --allow experts")


def check(
    request: Request,
    graph: Graph,
    groups: Sequence[ChannelGroup],
    blocks: Collection[str] = (),
    experts: Sequence[ChannelGroup] = (),
) -> None:
    """Refuse what can't be met, whatever the scores.

    Args:
        request: what is asked.
        graph: the analysed model.
        groups: those that may lose units.
        blocks: those that may go.
        experts: groups of experts that may lose some.

    Raises:
        BudgetError: a budget or a ratio out of range or below what the floors allow, or counts that can't be kept.
        ConfigError: counts of a group that may not be pruned or is not there, or no group at all.
    """
    check_asked_for(request, graph, [EXPERTS] if experts else [])
    if not groups and not blocks and not experts:
        raise _nothing(graph)
    if experts and request.ratio is not None:
        what = "a fraction of the units says nothing of experts, which are no units of one size"
        raise ConfigError(f"target {request.ratio}", what, "give a budget, such as 'experts<=50%' or 'params<=60%'")
    if blocks and request.ratio is not None:
        what = "a fraction of the units says nothing of blocks, which are no units of one size"
        raise ConfigError(f"target {request.ratio}", what, "give a budget, such as 'macs<=50%'")
    if request.counts is None:
        if blocks or experts:
            return  # what can be met without blocks or experts is looked at plan by plan
        if request.budget is not None or request.ratio is not None:
            check_reachable(
                graph, groups, budget=request.budget, pruning_ratio=request.ratio, allocation=request.allocation
            )
        return
    known = {g.name: g for g in (*groups, *experts)}
    unknown = sorted(map(repr, set(request.counts) - set(known) - set(blocks)))
    if unknown:
        choice = f"choose from: {', '.join(known)}" if known else "graph.explain() says what is locked and why"
        raise ConfigError(f"target {', '.join(unknown)}", "no prunable group of that name", choice)
    for name, count in request.counts.items():
        if name in blocks:
            if count not in (0, 1) or isinstance(count, bool):
                raise BudgetError(f"target of block {name!r}", f"{count!r} is neither 0 nor 1", "give 0: it goes")
            continue
        group, whole = known[name], isinstance(count, numbers.Integral) and not isinstance(count, bool)
        least = group.multiple if group.routing is None else group.routing.least
        if not whole or not least <= count <= group.units or count % group.multiple:
            rows = f" in {group.multiple} rows" if group.multiple > 1 else ""
            raise BudgetError(
                f"target of {name!r}",
                f"cannot keep {count!r} of {group.units} units{rows}",
                f"give a whole number from {least} to {group.units}"
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
    if not gone and not plan.blocks:
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
