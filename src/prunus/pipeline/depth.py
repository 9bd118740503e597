"""Blocks and widths together: how many blocks go, and how narrow what stays becomes for the rest of the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from prunus.errors import BudgetError, ConfigError
from prunus.graph.groups import ChannelGroup
from prunus.layers.submodules import matching
from prunus.learning.depth import depths
from prunus.learning.findings import Scores
from prunus.learning.measured import first_batches, plan_loss
from prunus.learning.problem import Problem
from prunus.methods.base import Method
from prunus.pipeline.planning import make_plan, scored, ways
from prunus.plan.allocation import Allocation
from prunus.plan.cost import CostModel
from prunus.plan.plan import Plan
from prunus.plan.request import SHOWN
from prunus.proof.ownclass import survives
from prunus.refit.prepared import Prepared
from prunus.runtime.precision import lower


def open_blocks(problem: Problem) -> list[str]:
    """Names of the blocks that may go: none unless asked for, none of ignored layers or that the class can't lose.

    Raises:
        ConfigError: they were asked for, and there are none.
    """
    if "blocks" not in problem.allow:
        return []
    names = _open_names(problem)
    if not names:
        locked = [str(b) for b in problem.graph.blocks.units if b.locked]
        what = "; ".join(locked[:SHOWN]) or "no residual sum of the model has a branch that may go"
        raise ConfigError("allow 'blocks'", what, "leave it out")
    return names


def _open_names(problem: Problem) -> list[str]:
    ignored = matching(problem.ignored_layers, problem.model)
    names = [b.name for b in problem.graph.blocks.free]
    names = [n for n in names if not any(f"{n}.".startswith(f"{i}.") for i in ignored)]
    if "own_class" not in problem.allow:
        return names
    return [n for n in names if survives(problem.model, problem.graph, {n: ()}, problem.example_inputs) is None]


def planned_with_blocks(
    problem: Problem, groups: list[ChannelGroup], method: Method, prepared: Prepared | None, blocks: Sequence[str]
) -> tuple[Plan, Scores]:
    """The plan asked for, of networks with ever fewer blocks that are made narrower for the rest of the budget.

    Blocks go in the order of `learning.depth.depths`, until they alone meet the budget. Of the numbers of blocks 0, 1,
    2, 4, ... and that last one, then those between the best and its neighbours, the one stays whose network is nearest
    to the dense one after repair; without repair, the one of the least loss. How widths are shared out is settled for
    the first number that can meet the budget, and again for the one that stays.

    Raises:
        ConfigError: no data, or no loss.
        BudgetError: a budget that can't be met with all blocks gone.
    """
    request, graph, model = problem.request, problem.graph, problem.model
    loader, loss_fn = problem.learned_from()
    if loader is None or loss_fn is None:
        what = "blocks go in the order of the loss without them, and data or loss_fn is missing"
        raise ConfigError("allow 'blocks'", what, "give data (loss_fn=None learns from the dense network's outputs)")
    assert request.budget is not None
    budget, dense = request.budget, CostModel(graph).dense()
    few = first_batches(loader, problem.seed)
    asked, scores = Allocation("global"), Scores({}, method=method.name)
    if groups:
        asked, scores = scored(problem, groups, method, prepared)
    known = problem.scores.depths if problem.scores is not None else ()
    found = depths(
        model, graph, blocks, few, loss_fn, lambda cost: budget.excess(cost, dense) <= 1, known=known,
        progress=problem.progress,
    )  # fmt: skip
    scores = Scores(**{**vars(scores), "depths": found})

    def loss(plan: Plan) -> float:
        return plan_loss(model, plan, few, loss_fn) if prepared is None else prepared.trials.loss(plan)

    search = _Search(
        lambda number, way: make_plan(
            graph, groups, scores, budget=budget, allocation=way, seed=problem.seed, blocks=found[number].blocks
        ),
        loss,
    )
    last = len(found) - 1
    first = _first(search, asked, last)
    search.look([first], ways(asked, scores, prepared))
    way = search.best[1]
    coarse = sorted({first, last, *(n for n in (1 << k for k in range(last.bit_length())) if first < n < last)})
    search.look(coarse, [way])
    place = coarse.index(search.best[0])
    near = coarse[max(place - 1, 0) : place + 2]
    search.look([(a + b) // 2 for a, b in pairwise(near)], [way])
    search.look([search.best[0]], ways(asked, scores, prepared))
    return search.plan, scores


def _first(search: _Search, asked: Allocation, last: int) -> int:
    """The smallest number of blocks without which the budget can be met. Raises BudgetError if there is none."""
    for number in range(last):
        if search.can(number, asked):
            return number
    search.made(last, asked)
    return last


class _Search:
    """The best plan so far, of numbers of blocks and ways to share out the rest."""

    def __init__(self, make: Callable[[int, Allocation], Plan], loss: Callable[[Plan], float]) -> None:
        self.made, self.loss = make, loss
        self.losses: dict[tuple[tuple[str, tuple[int, ...]], ...], float] = {}
        self.best: tuple[int, Allocation] = (0, Allocation())
        self.plan: Plan
        self.least: float | None = None

    def can(self, number: int, way: Allocation) -> bool:
        """Whether a plan can be made."""
        try:
            self.made(number, way)
        except BudgetError:
            return False
        return True

    def look(self, numbers: Sequence[int], ways: Sequence[Allocation]) -> None:
        """Try every number with every way."""
        for number in numbers:
            for way in ways:
                try:
                    plan = self.made(number, way)
                except BudgetError:
                    continue  # another number meets the budget
                key = tuple(sorted(plan.kept.items()))
                if key not in self.losses:
                    self.losses[key] = self.loss(plan)
                    if self.least is None or lower(self.losses[key], than=self.least):
                        self.best, self.plan, self.least = (number, way), plan, self.losses[key]
