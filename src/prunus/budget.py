"""How many units stay in each group, and which: from comparable scores and a budget to kept indices.

The real cost is evaluated at every step (`CostModel`), so a budget is met exactly as far as whole units allow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from prunus.cost import Cost, CostModel
from prunus.errors import BudgetError, ConfigError
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.rounding import DEFAULT, step_of

Scope = Literal["auto", "global", "measured", "uniform"]
Counts = npt.NDArray[np.int64]
RESOURCES = ("macs", "params", "weights")
SUFFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
CLOSE = 0.02
"""A ratio is met if what goes differs from it by no more than this share of all units."""
MIXTURES = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Limit:
    """One bound: `resource` must not exceed `value`, a fraction of the dense cost if `relative`."""

    resource: str
    value: float
    relative: bool

    def bound(self, dense: Cost) -> float:
        """The bound in absolute units."""
        return self.value * getattr(dense, self.resource) if self.relative else self.value


@dataclass(frozen=True)
class Budget:
    """Bounds that must all hold, such as `macs<=50%, params<=3M`."""

    limits: tuple[Limit, ...]
    text: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget from text: comma-separated `RESOURCE<=AMOUNT` with RESOURCE macs, params or weights and
        AMOUNT a percentage of the dense cost (`50%`) or a number (`400K`, `3M`, `1.2G`); `=` means the same as `<=`.

        Raises:
            BudgetError: the text is not of that form.
        """
        limits = []
        for part in filter(None, (p.strip() for p in text.split(","))):
            match = re.fullmatch(r"(\w+)\s*(?:<=|=)\s*([\d.]+(?:e\d+)?)\s*([%kKmMgGbB]?)", part)
            if match is None or match[2].count(".") > 1:
                raise BudgetError(
                    f"budget {part!r}", "it is not of the form RESOURCE<=AMOUNT", "write for example macs<=50%"
                )
            resource, number, suffix = match[1].lower(), float(match[2]), match[3].lower()
            if resource not in RESOURCES:
                raise BudgetError(
                    f"budget {part!r}", f"unknown resource {resource!r}", f"use one of {', '.join(RESOURCES)}"
                )
            if number <= 0 or (suffix == "%" and number > 100):
                raise BudgetError(
                    f"budget {part!r}", "the amount is out of range", "give more than 0, and at most 100 %"
                )
            limits.append(Limit(resource, number / 100 if suffix == "%" else number * SUFFIX[suffix], suffix == "%"))
        if not limits:
            raise BudgetError(f"budget {text!r}", "it names no bound", "write for example macs<=50%, params<=20%")
        return cls(tuple(limits), text)

    def excess(self, cost: Cost, dense: Cost) -> float:
        """Largest ratio of a cost to its bound; at most 1 if the budget is met."""
        return max(getattr(cost, limit.resource) / limit.bound(dense) for limit in self.limits)


@dataclass(frozen=True)
class Allocation:
    """Settings of the allocation.

    Attributes:
        scope: `global` ranks all units together; `measured` ranks them by the loss that cutting each group to a few
            sizes was measured to cost, which needs data; `uniform` keeps the same fraction of every group, and the
            same number in groups of one size; `auto` leaves `prune` the choice between the first two where there are
            data, and is `global` elsewhere.
        cost_exponent: global only; scores are divided by (the cost a unit saves) to this power. 0 ranks by score
            alone, 1 by score per cost saved (as measured losses always are); None takes what the method's scores are
            made for (`Method.cost_exponent`), or 0 where no method is known.
        round_to: widths are multiples of this where the group has twice as many channels, of half of it below;
            1 for any width. None takes 8, or the largest of 4, 2 and 1 that can meet what is asked where 8 can't: a
            budget at all, a ratio to within two hundredths.
        floor: smallest fraction of a group that stays (at least one unit, one per row).
    """

    scope: Scope = "auto"
    cost_exponent: float | None = None
    round_to: int | None = None
    floor: float = 0.05

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise ConfigError("scope", f"{self.scope!r} is not known", f"use one of {', '.join(get_args(Scope))}")
        if self.round_to is not None and self.round_to < 1:
            raise ConfigError("round_to", f"{self.round_to} is below 1", "use 1 (any width), 8 or 16")
        if not 0 <= self.floor <= 1:
            raise ConfigError("floor", f"{self.floor} is not a fraction", "give a number between 0 and 1")


def allocate(
    graph: Graph,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    *,
    budget: Budget | None = None,
    pruning_ratio: float | None = None,
    allocation: Allocation | None = None,
) -> dict[str, int]:
    """Kept count of every group.

    Args:
        graph: the analysed model.
        groups: the groups that may lose units.
        scores: group name -> score of each unit [K], higher = keep, comparable between groups; losses for the scope
            `measured`.
        budget: bounds to meet, or
        pruning_ratio: fraction of the units of all groups together that goes.
        allocation: scope, rounding, floor.

    Raises:
        BudgetError: nothing to prune, no budget and no ratio, or a budget below what the floors allow.
        ConfigError: non-finite scores.
    """
    settings = allocation or Allocation()
    if not groups:
        raise BudgetError("groups", "no group of this model may be pruned", "see graph.explain() for the reasons")
    if (budget is None) == (pruning_ratio is None):
        raise BudgetError("budget", "give either a budget or a pruning_ratio", "for example budget='macs<=50%'")
    if pruning_ratio is not None and not 0 < pruning_ratio < 1:
        raise BudgetError("pruning_ratio", f"{pruning_ratio} is not a fraction", "give a number between 0 and 1")
    *preferred, last = (DEFAULT, 4, 2, 1) if settings.round_to is None else (settings.round_to,)
    for step in preferred:
        try:
            counts = _rounded(graph, groups, scores, budget, pruning_ratio, replace(settings, round_to=step))
        except BudgetError:
            continue
        gone = 1 - sum(counts.values()) / sum(g.units for g in groups)
        if pruning_ratio is None or abs(gone - pruning_ratio) <= CLOSE:
            return counts
    return _rounded(graph, groups, scores, budget, pruning_ratio, replace(settings, round_to=last))


def _rounded(
    graph: Graph,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    budget: Budget | None,
    ratio: float | None,
    settings: Allocation,
) -> dict[str, int]:
    problem = _Problem(graph, groups, scores, settings)
    if budget is not None:
        return problem.within(budget)
    assert ratio is not None
    return problem.by_ratio(ratio)


def _mixtures(budget: Budget, exponent: float) -> list[dict[str, float]]:
    """Weights of the resources when several bounds hold at once: every mixture of the first and the last is tried."""
    names = list(dict.fromkeys(limit.resource for limit in budget.limits))
    if len(names) == 1 or exponent == 0:
        return [dict.fromkeys(names, 1.0)]
    return [{names[0]: w, names[-1]: 1 - w} for w in MIXTURES]


class _Problem:
    """The groups with their sorted scores, and what each count costs."""

    def __init__(
        self, graph: Graph, groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], settings: Allocation
    ) -> None:
        self.groups, self.settings = list(groups), settings
        self.costs = CostModel(graph)
        self.dense = self.costs.dense()
        self.sorted = [_sorted_scores(g, scores) for g in groups]
        self.minimum = [self._round(g, max(1, math.ceil(settings.floor * g.units)), up=True) for g in groups]

    def within(self, budget: Budget) -> dict[str, int]:
        """Counts that meet the budget. Raises BudgetError if none do."""
        self.check_reachable(budget)
        if self.settings.scope == "uniform":
            return self.uniform(budget)
        exponent = 1.0 if self.settings.scope == "measured" else self.settings.cost_exponent or 0.0
        found = [self.bisect(budget, self.priorities(w, exponent)) for w in _mixtures(budget, exponent)]
        return max(found, key=lambda counts: self.used(budget, counts))

    def _round(self, group: ChannelGroup, count: int, up: bool = False) -> int:
        step = step_of(group, self.settings.round_to or DEFAULT)
        rounded = math.ceil(count / step) * step if up else max(step, round(count / step) * step)
        return min(rounded, group.units)

    def cost(self, counts: Sequence[int]) -> Cost:
        return self.costs.at(self.costs.counts({g.name: c for g, c in zip(self.groups, counts, strict=True)}))

    def named(self, counts: Sequence[int]) -> dict[str, int]:
        return {g.name: int(c) for g, c in zip(self.groups, counts, strict=True)}

    def check_reachable(self, budget: Budget) -> None:
        least = self.cost(self.minimum)
        for limit in budget.limits:
            reachable = getattr(least, limit.resource)
            if reachable > limit.bound(self.dense):
                share = 100 * reachable / getattr(self.dense, limit.resource)
                total, free = len(self.costs.names), len(self.groups)
                raise BudgetError(
                    f"budget {budget.text!r} cannot be met",
                    f"the smallest reachable {limit.resource} is {reachable:,} ({share:.1f} %) with a floor "
                    f"of {self.settings.floor:.0%} per group; {total - free} of {total} groups are locked or ignored",
                    "raise the budget, lower the floor, or see graph.explain() for what is locked and why",
                )

    def priorities(self, weights: Mapping[str, float], exponent: float) -> list[npt.NDArray[np.float64]]:
        """Sorted scores divided by (the share of the budgeted resources that a unit saves) ** exponent."""
        if exponent == 0:
            return self.sorted
        result = []
        for number, (group, line) in enumerate(zip(self.groups, self.sorted, strict=True)):
            counts = [g.units for g in self.groups]
            counts[number] -= group.multiple
            less = self.cost(counts)
            saved = sum(
                w * (getattr(self.dense, r) - getattr(less, r)) / getattr(self.dense, r) for r, w in weights.items()
            )
            result.append(line / max(saved / group.multiple, 1e-12) ** exponent)
        return result

    def bisect(self, budget: Budget, priorities: Sequence[npt.NDArray[np.float64]]) -> dict[str, int]:
        """The lowest threshold that meets the budget, then whatever still fits, best first."""
        thresholds = np.unique(np.concatenate(priorities))
        low, high = 0, len(thresholds)
        while low < high:
            middle = (low + high) // 2
            met = budget.excess(self.cost(self._counts(priorities, thresholds[middle])), self.dense) <= 1
            low, high = (low, middle) if met else (middle + 1, high)
        threshold = thresholds[low] if low < len(thresholds) else np.inf
        return self.named(self._fill(self._counts(priorities, threshold), priorities, budget))

    def _counts(self, priorities: Sequence[npt.NDArray[np.float64]], threshold: float) -> list[int]:
        return [
            max(low, self._round(group, int((line >= threshold).sum())))
            for group, line, low in zip(self.groups, priorities, self.minimum, strict=True)
        ]

    def _fill(self, counts: list[int], priorities: Sequence[npt.NDArray[np.float64]], budget: Budget) -> list[int]:
        counts = list(counts)
        blocked: set[int] = set()
        while len(blocked) < len(counts):
            open_groups = [i for i in range(len(counts)) if i not in blocked and counts[i] < self.groups[i].units]
            if not open_groups:
                break
            best = max(open_groups, key=lambda i: priorities[i][counts[i]])
            trial = self._one_step_more(counts, best)
            if budget.excess(self.cost(trial), self.dense) <= 1:
                counts = trial
            else:
                blocked.add(best)
        return counts

    def uniform(self, budget: Budget) -> dict[str, int]:
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            met = budget.excess(self.cost(self._fraction(middle)), self.dense) <= 1
            low, high = (middle, high) if met else (low, middle)
        counts = self._fraction(low)
        for alike in sorted(self._alike(), key=lambda a: counts[a[0]] / self.groups[a[0]].units):
            trial = counts
            for index in alike:
                trial = self._one_step_more(trial, index)
            if budget.excess(self.cost(trial), self.dense) <= 1:
                counts = trial
        return self.named(counts)

    def _alike(self) -> list[list[int]]:
        """Groups of one size, which a uniform allocation keeps equal: a configuration may have one number for them."""
        found: dict[tuple[int, int, int], list[int]] = {}
        for index, (group, least) in enumerate(zip(self.groups, self.minimum, strict=True)):
            found.setdefault((group.units, group.multiple, least), []).append(index)
        return list(found.values())

    def _one_step_more(self, counts: Sequence[int], index: int) -> list[int]:
        more = list(counts)
        if more[index] < self.groups[index].units:
            more[index] = max(self._round(self.groups[index], more[index] + 1, up=True), more[index] + 1)
        return more

    def _fraction(self, kept: float) -> list[int]:
        return [
            max(low, self._round(g, round(kept * g.units))) for g, low in zip(self.groups, self.minimum, strict=True)
        ]

    def by_ratio(self, ratio: float) -> dict[str, int]:
        if self.settings.scope == "uniform":
            return self.named(self._fraction(1 - ratio))
        everything = np.sort(np.concatenate(self.sorted))
        threshold = everything[min(round(ratio * len(everything)), len(everything) - 1)]
        return self.named(self._counts(self.sorted, threshold))

    def used(self, budget: Budget, counts: Mapping[str, int]) -> float:
        """How much of all bounds together a plan uses: of several that meet them, the one that wastes least is best."""
        cost = self.cost([counts[g.name] for g in self.groups])
        return sum(getattr(cost, limit.resource) / limit.bound(self.dense) for limit in budget.limits)


def _sorted_scores(group: ChannelGroup, scores: Mapping[str, Tensor]) -> npt.NDArray[np.float64]:
    values = scores[group.name].detach().double().cpu().numpy()
    if values.shape != (group.units,) or not np.isfinite(values).all():
        raise ConfigError(
            f"scores of group {group.name!r}",
            f"expected {group.units} finite numbers, got shape {values.shape}",
            "check the method that made them",
        )
    return np.sort(values)[::-1]


def select(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], counts: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Kept indices: the best `counts[name]` units of each group, the same number in every row where rows are tied.

    Raises:
        BudgetError: a count that is out of range or no multiple of the group's rows.
    """
    kept = {}
    for group in groups:
        count = counts.get(group.name, group.units)
        if not 1 <= count <= group.units or count % group.multiple:
            raise BudgetError(
                f"group {group.name!r}",
                f"cannot keep {count} of {group.units} units in {group.multiple} rows",
                f"choose a multiple of {group.multiple} between {group.multiple} and {group.units}",
            )
        values = scores[group.name].detach().double().cpu().numpy()
        order = np.argsort(-values, kind="stable")
        if group.rows is None:
            chosen = order[:count]
        else:
            per_row = count // group.multiple
            chosen = np.concatenate([order[group.rows[order] == r][:per_row] for r in range(group.multiple)])
        kept[group.name] = tuple(sorted(chosen.tolist()))
    return kept
