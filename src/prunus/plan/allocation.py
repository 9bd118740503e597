"""How many units stay in each group, and which: from comparable scores and a budget to kept indices.

The real cost is evaluated at every step (`CostModel`), so a budget is met exactly as far as whole units allow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from prunus.errors import BudgetError, ConfigError
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.plan.budget import Budget
from prunus.plan.cost import Cost, CostModel
from prunus.plan.gauge import Gauge
from prunus.plan.ranking import Line, merged_ranks
from prunus.plan.resources import GAUGED, described
from prunus.plan.rounding import DEFAULT, step_of
from prunus.runtime.fields import allows, check_fields, check_kind
from prunus.runtime.ranges import Count, Fraction, NonNegative

Scope = Literal["auto", "global", "measured", "uniform"]
Counts = npt.NDArray[np.int64]
CLOSE = 0.02
"""A ratio is met if what goes differs from it by no more than this share of all units."""
STEPS, COARSE = {2: 10, 3: 5}, 3
"""Of several bounded resources every mixture in steps of a tenth (of two), a fifth (of three) or a third is tried."""


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
            1 for any width. `auto` (or None) takes 8, or 16 for a budget on latency whose table says that less costs as
            much; or the largest of those below that can meet what is asked where it can't: a budget at all, a ratio to
            within two hundredths.
        floor: smallest fraction of a group that stays (at least one unit, one per row).

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> graph = prunus.trace(net, torch.randn(2, 8))
        >>> scores = {group.name: torch.rand(group.units) for group in graph.groups()}
        >>> prunus.allocate(graph, graph.groups(), scores, pruning_ratio=0.5, allocation=prunus.Allocation("uniform"))
        {'0': 16, '2': 8}
    """

    scope: Scope = "auto"
    cost_exponent: NonNegative | None = None
    round_to: Count | Literal["auto"] | None = "auto"
    floor: Fraction = 0.05

    def __post_init__(self) -> None:
        check_fields(self)
        step = "auto" if self.round_to in (None, "auto") else int(self.round_to)
        object.__setattr__(self, "round_to", step)
        if self.cost_exponent is None:
            return
        if self.scope in ("measured", "uniform"):
            what = f"scope {self.scope!r} does not use it"
            raise ConfigError(f"cost_exponent={self.cost_exponent}", what, "leave it out, or use scope='global'")


def allocate(
    graph: Graph,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    *,
    budget: Budget | None = None,
    pruning_ratio: float | None = None,
    allocation: Allocation | None = None,
    seed: int = 0,
    decided: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Kept count of every group.

    Args:
        graph: the analysed model.
        groups: the groups that may lose units.
        scores: group name -> score of each unit [K], higher = keep, comparable between groups; losses for the scope
            `measured`. Of equal scores every group gives up the same share.
        budget: bounds to meet, or
        pruning_ratio: fraction of the units of all groups together that goes: at least so many, and no more than whole
            units, rows and multiples ask for.
        allocation: scope, rounding, floor.
        seed: decides where scores are equal.
        decided: what other groups keep.

    Raises:
        BudgetError: nothing to prune, no budget and no ratio, or one that the floors do not allow.
        ConfigError: scores that are not finite, or none of a group.

    Example:
        >>> graph = prunus.trace(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 8))
        >>> prunus.allocate(graph, graph.groups(), {"0": torch.rand(16)}, budget=prunus.Budget.parse("macs<=50%"))
        {'0': 8}
    """
    if budget is not None:
        check_kind("budget", budget, Budget, "Budget.parse('macs<=50%')")
    settings = allocation or Allocation()
    lines = [_sorted_scores(g, scores) for g in groups]
    *preferred, last = _steps(settings, graph)
    for step in preferred:
        try:
            finer = _Problem(graph, groups, replace(settings, round_to=step), seed, decided)
            counts = finer.solve(budget, pruning_ratio, lines)
        except BudgetError:
            continue
        gone = 1 - sum(counts.values()) / sum(g.units for g in groups)
        if pruning_ratio is None or abs(gone - pruning_ratio) <= CLOSE:
            return counts
    finest = _Problem(graph, groups, replace(settings, round_to=last), seed, decided)
    return finest.solve(budget, pruning_ratio, lines)


def _steps(settings: Allocation, graph: Graph) -> tuple[int, ...]:
    """What widths are rounded to: the first that can meet the request, at worst the last."""
    if isinstance(settings.round_to, int):
        return (settings.round_to,)
    timed = graph.gauges.get("latency")
    block = timed.block if isinstance(timed, Gauge) else DEFAULT
    return (*((block,) if block > DEFAULT else ()), DEFAULT, 4, 2, 1)


def check_reachable(
    graph: Graph,
    groups: Sequence[ChannelGroup],
    *,
    budget: Budget | None = None,
    pruning_ratio: float | None = None,
    allocation: Allocation | None = None,
) -> None:
    """Refuse what no scores could meet, before any are made.

    Raises:
        BudgetError: as `allocate`.
    """
    settings = allocation or Allocation()
    finest = replace(settings, round_to=_steps(settings, graph)[-1])
    _Problem(graph, groups, finest).fitting(budget, pruning_ratio)


def _mixtures(budget: Budget, exponent: float) -> list[dict[str, float]]:
    """Weights of the resources when several bounds hold at once, adding up to 1: every mixture is tried."""
    names = list(dict.fromkeys(limit.resource for limit in budget.limits))
    if len(names) == 1 or exponent == 0:
        return [dict.fromkeys(names, 1.0)]
    steps = STEPS.get(len(names), COARSE)
    parts = (p for p in itertools.product(range(steps + 1), repeat=len(names)) if sum(p) == steps)
    return [{n: p / steps for n, p in zip(names, part, strict=True)} for part in parts]


Fits = Callable[[Sequence[int]], bool]


def _needed(group: ChannelGroup) -> int:
    """The fewest units that may stay whatever the floor: of experts as many as a token is given."""
    return 1 if group.routing is None else max(group.routing.least, group.routing.choices)


class _Problem:
    """The groups, what each count costs, and the least that may stay."""

    def __init__(
        self,
        graph: Graph,
        groups: Sequence[ChannelGroup],
        settings: Allocation,
        seed: int = 0,
        decided: Mapping[str, int] | None = None,
    ) -> None:
        if not groups:
            raise BudgetError("groups", "no group of this model may be pruned", "see graph.explain() for the reasons")
        self.groups, self.settings, self.seed = list(groups), settings, seed
        self.decided = dict(decided or {})
        self.step = settings.round_to if isinstance(settings.round_to, int) else DEFAULT
        self.costs = CostModel(graph)
        self.dense = self.costs.dense()
        self.minimum = [self._round(g, max(_needed(g), math.ceil(settings.floor * g.units)), up=True) for g in groups]

    def solve(self, budget: Budget | None, ratio: float | None, lines: Sequence[Line]) -> dict[str, int]:
        """Counts that meet the request, by scores in falling order. Raises BudgetError if none do."""
        fits = self.fitting(budget, ratio)
        if self.settings.scope == "uniform":
            return self.uniform(fits)
        if budget is None:
            return self.bisect(fits, lines)
        exponent = 1.0 if self.settings.scope == "measured" else self.settings.cost_exponent or 0.0
        mixtures = _mixtures(budget, exponent)
        found = [self.bisect(fits, self.priorities(lines, weights, exponent)) for weights in mixtures]
        return max(found, key=lambda counts: self.used(budget, counts))

    def fitting(self, budget: Budget | None, ratio: float | None) -> Fits:
        """Whether counts meet the request, which the smallest possible counts do."""
        if (budget is None) == (ratio is None):
            raise BudgetError("budget", "give either a budget or a pruning_ratio", "for example budget='macs<=50%'")
        if budget is not None:
            self._check_budget(budget)
            return lambda counts: budget.excess(self.cost(counts), self.dense) <= 1
        if not allows(float, ratio) or not 0 < (share := float(ratio)) < 1:  # type: ignore[arg-type]
            raise BudgetError("pruning_ratio", f"{ratio!r} is not a fraction", "give a number between 0 and 1")
        total = sum(g.units for g in self.groups)
        stays = total - round(share * total)
        if sum(self.minimum) > stays:
            raise BudgetError(
                f"pruning_ratio={share} cannot be met",
                f"of {total} units at least {sum(self.minimum)} stay, with a floor of {self.settings.floor:.0%} per "
                f"group and round_to={self.settings.round_to}",
                f"ask for at most {math.floor(1000 * (1 - sum(self.minimum) / total)) / 1000}, or lower the floor",
            )
        return lambda counts: sum(counts) <= stays

    def _round(self, group: ChannelGroup, count: int, up: bool = False) -> int:
        step = step_of(group, self.step)
        rounded = math.ceil(count / step) * step if up else max(step, round(count / step) * step)
        return min(rounded, group.units)

    def cost(self, counts: Sequence[int]) -> Cost:
        mine = {g.name: c for g, c in zip(self.groups, counts, strict=True)}
        return self.costs.at(self.costs.counts({**self.decided, **mine}))

    def named(self, counts: Sequence[int]) -> dict[str, int]:
        return {g.name: int(c) for g, c in zip(self.groups, counts, strict=True)}

    def _check_budget(self, budget: Budget) -> None:
        least = self.cost(self.minimum)
        for limit in budget.limits:
            reachable = limit.of(least)
            if reachable > limit.bound(self.dense):
                share = 100 * reachable / limit.of(self.dense)
                total, free = len(self.costs.names), len(self.groups)
                raise BudgetError(
                    f"budget {budget.text!r} cannot be met",
                    f"the smallest reachable {limit.resource} is {described(limit.resource, reachable)} "
                    f"({share:.1f} %) with a floor of {self.settings.floor:.0%} per group; "
                    f"{total - free} of {total} groups are locked or ignored",
                    limit.as_share() + "raise the budget, lower the floor, or see graph.explain() for what is locked "
                    "and why",
                )

    def priorities(self, lines: Sequence[Line], weights: Mapping[str, float], exponent: float) -> list[Line]:
        """Sorted scores divided by (the share of the budgeted resources that a unit saves) ** exponent."""
        # Scores that are all the same say nothing, and no cost makes them: every group gives up the same share.
        if exponent == 0 or len({float(v) for line in lines for v in (line[0], line[-1])}) == 1:
            return list(lines)
        result = []
        for number, (group, line) in enumerate(zip(self.groups, lines, strict=True)):
            counts = [g.units for g in self.groups]
            # What is measured falls in steps of whole blocks: what one unit saves is their average.
            gone = group.units - self.minimum[number] if GAUGED & weights.keys() else group.multiple
            gone = max(gone, group.multiple)
            counts[number] -= gone
            less = self.cost(counts)
            saved = sum(w * (self.dense[r] - less[r]) / (self.dense[r] or 1) for r, w in weights.items())
            result.append(line / max(saved / gone, 1e-12) ** exponent)
        return result

    def bisect(self, fits: Fits, priorities: Sequence[Line]) -> dict[str, int]:
        """The lowest place in the order of all units from which on what stays fits, then whatever else does."""
        ranks = merged_ranks(priorities, self.seed)
        low, high = 0, sum(map(len, ranks))
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(self._from(ranks, middle)) else (middle + 1, high)
        return self.named(self._fill(self._from(ranks, low), ranks, fits))

    def _from(self, ranks: Sequence[Counts], place: int) -> list[int]:
        return [
            max(low, self._round(group, int((line >= place).sum())))
            for group, line, low in zip(self.groups, ranks, self.minimum, strict=True)
        ]

    def _fill(self, counts: list[int], ranks: Sequence[Counts], fits: Fits) -> list[int]:
        counts = list(counts)
        blocked: set[int] = set()
        while len(blocked) < len(counts):
            open_groups = [i for i in range(len(counts)) if i not in blocked and counts[i] < self.groups[i].units]
            if not open_groups:
                break
            best = max(open_groups, key=lambda i: ranks[i][counts[i]])
            trial = self._one_step_more(counts, best)
            if fits(trial):
                counts = trial
            else:
                blocked.add(best)
        return counts

    def uniform(self, fits: Fits) -> dict[str, int]:
        """The largest fraction of every group that fits, then one step more of groups alike where that fits."""
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(self._fraction(middle)) else (low, middle)
        counts = self._fraction(low)
        for alike in sorted(self._alike(), key=lambda a: counts[a[0]] / self.groups[a[0]].units):
            trial = counts
            for index in alike:
                trial = self._one_step_more(trial, index)
            if fits(trial):
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

    def used(self, budget: Budget, counts: Mapping[str, int]) -> float:
        """How much of all bounds together a plan uses: of several that meet them, the one that wastes least is best."""
        cost = self.cost([counts[g.name] for g in self.groups])
        return sum(limit.of(cost) / limit.bound(self.dense) for limit in budget.limits)


def _scores_of(group: ChannelGroup, scores: Mapping[str, Tensor]) -> npt.NDArray[np.float64]:
    if group.name not in scores:
        raise ConfigError("scores", f"none of group {group.name!r}", "score these groups, or leave the group out")
    return scores[group.name].detach().double().cpu().numpy()


def _sorted_scores(group: ChannelGroup, scores: Mapping[str, Tensor]) -> Line:
    values = _scores_of(group, scores)
    if values.shape != (group.units,) or not np.isfinite(values).all():
        finite = int(np.isfinite(values).sum())
        raise ConfigError(
            f"scores of group {group.name!r}",
            f"expected {group.units} finite numbers, got shape {values.shape} with {finite} finite",
            "look for weights or activations beyond what fp32 holds, or use another method",
        )
    return np.sort(values)[::-1]


def select(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], counts: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Kept indices: the best `counts[name]` units of each group, the same number in every row where rows are tied.

    Raises:
        BudgetError: a count that is out of range or no multiple of the group's rows.
        ConfigError: a group without scores.

    Example:
        >>> graph = prunus.trace(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(2, 8))
        >>> prunus.select(graph.groups(), {"0": torch.tensor([0.1, 3.0, 0.2, 2.0])}, {"0": 2})
        {'0': (1, 3)}
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
        values = _scores_of(group, scores)
        order = np.argsort(-values, kind="stable")
        if group.rows is None:
            chosen = order[:count]
        else:
            per_row = count // group.multiple
            chosen = np.concatenate([order[group.rows[order] == r][:per_row] for r in range(group.multiple)])
        kept[group.name] = tuple(sorted(chosen.tolist()))
    return kept
