"""From scores to a plan: which groups may lose units, what each unit is worth, and which of them stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from prunus.data.batches import as_batches
from prunus.data.taught import taught
from prunus.errors import ConfigError
from prunus.files.fingerprint import tree_digest, weights_digest
from prunus.files.steps import Steps
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.graph.shallower import without_blocks
from prunus.layers.submodules import Ignored, matching
from prunus.learning.findings import Scores
from prunus.learning.fit import fit, score_units
from prunus.learning.kept import made_from, scored_groups
from prunus.learning.measured import first_batches, masked_loss, measured_scores
from prunus.learning.problem import Learning, Problem, needed
from prunus.methods.base import Method
from prunus.plan.allocation import Allocation, allocate, select
from prunus.plan.budget import Budget
from prunus.plan.cost import CostModel
from prunus.plan.edits import checked_blocks
from prunus.plan.keeping import keep_probability
from prunus.plan.plan import Plan
from prunus.plan.request import remarks
from prunus.refit.prepared import Prepared
from prunus.runtime.entry import entry
from prunus.runtime.fields import as_seed
from prunus.runtime.precision import lower

EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""How much the cost of a unit counts against its score in the plans that are tried."""


def planned(
    problem: Problem, groups: list[ChannelGroup], method: Method, prepared: Prepared | None = None
) -> tuple[Plan, Scores, Allocation]:
    """The plan asked for, for the scope `auto` the best of several, see `prune`; and the allocation that made it."""
    request, model = problem.request, problem.model
    asked, scores = scored(problem, groups, method, prepared)
    tried = ways(asked, scores, prepared)
    plans = [
        make_plan(
            problem.graph, groups, scores, budget=request.budget, pruning_ratio=request.ratio,
            kept_counts=request.counts, allocation=way, seed=problem.seed,
        )
        for way in tried
    ]  # fmt: skip
    if len(plans) == 1:
        return plans[0], scores, tried[0]
    if prepared is not None:
        best = _best(problem, method, prepared, plans)
        return plans[best], scores, tried[best]
    loader, loss_fn = problem.learned_from()
    few = first_batches(loader, problem.seed)  # type: ignore[arg-type]
    losses = [masked_loss(model, groups, plan.kept, few, loss_fn) for plan in plans]  # type: ignore[arg-type]
    better = lower(losses[1], than=losses[0])
    return plans[better], scores, tried[better]


def _best(problem: Problem, method: Method, prepared: Prepared, plans: Sequence[Plan]) -> int:
    """Which plan's network is nearest to the dense one after repair, found out or as it was found out before."""
    steps = problem.steps
    origin = {} if steps is None else {
        "model": weights_digest(problem.model),
        "data": problem.data_digest(),
        "method": repr(method),
        "plans": tree_digest([plan.to_json() for plan in plans]),
        "repair": repr(problem.repair),
        "seed": str(problem.seed),
    }  # fmt: skip
    kept = None if steps is None else steps.finished("plan", origin)
    if kept is not None:
        return int(kept["number"])
    best = prepared.best(plans, problem.progress)
    number = next(i for i, plan in enumerate(plans) if plan is best)
    if steps is not None:
        steps.finish("plan", origin, {"number": number})
    return number


def scored(
    problem: Problem, groups: list[ChannelGroup], method: Method, prepared: Prepared | None
) -> tuple[Allocation, Scores]:
    """The allocation as far as it is settled, and the scores that it asks for."""
    request, model = problem.request, problem.model
    loader, loss_fn = problem.learned_from()
    asked = request.allocation
    several = request.counts is None and len(groups) > 1
    if asked.scope == "auto" and (not several or loader is None or (loss_fn is None and prepared is None)):
        asked = replace(asked, scope="global")
    if asked.scope == "auto" and prepared is not None and asked.cost_exponent is not None:
        asked = replace(asked, scope="global")
    measured = request.counts is None and (asked.scope == "measured" or (asked.scope == "auto" and loss_fn is not None))
    scores = problem.scores or score(
        model, groups, method, loader, loss_fn,
        seed=problem.seed, progress=problem.progress, measured=measured, steps=problem.steps,
    )  # fmt: skip
    return asked, scores


def ways(asked: Allocation, scores: Scores, prepared: Prepared | None) -> list[Allocation]:
    """The allocations to choose from: one, unless the scope is `auto`."""
    if asked.scope != "auto":
        return [asked]
    measured = [replace(asked, scope="measured", cost_exponent=None)]
    if prepared is None:
        return [replace(asked, scope="global"), *measured]
    exponents = sorted({*EXPONENTS, scores.cost_exponent})
    found = [replace(asked, scope="global", cost_exponent=e) for e in exponents]
    return [*found, replace(asked, scope="uniform", cost_exponent=None), *(measured if scores.measured else [])]


@entry()
def score(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    method: Method,
    loader: Iterable[Any] | None,
    loss_fn: Callable[..., Tensor] | None,
    *,
    seed: int = 0,
    progress: bool = False,
    measured: bool = False,
    steps: Steps | None = None,
) -> Scores:
    """Score the units of the groups by any method, and measure their losses if the allocation will ask for them.

    What `steps` keeps of the same network, data and method is not learned or measured again.

    Raises:
        ConfigError: the method or the measurement needs data and there are none.
    """
    if not measured and not method.needs_data:
        return fit(model, groups, method, [], nn.functional.cross_entropy, num_data=1, seed=seed, progress=progress)
    batches, loss = needed(method.name, None if loader is None else as_batches(loader, model), loss_fn)
    batches, loss = taught(model, batches, loss, as_seed(seed))
    learning = Learning(batches, loss, seed=as_seed(seed), progress=progress, steps=steps)
    found = score_units(method, model, groups, learning)
    if not measured:
        return found
    also = {"groups": scored_groups(groups), "scores": tree_digest(dict(found.values))}
    origin = made_from(model, method, learning, also)
    tables = None if steps is None else steps.finished("tables", origin)
    if tables is None:
        few = first_batches(batches, seed)
        tables = measured_scores(model, groups, found.values, few, loss, progress=progress)
        if steps is not None:
            steps.finish("tables", origin, tables)
    return replace(found, measured=tables)


def make_plan(
    graph: Graph,
    groups: Sequence[ChannelGroup],
    scores: Scores,
    *,
    budget: Budget | None = None,
    pruning_ratio: float | None = None,
    kept_counts: Mapping[str, int] | None = None,
    allocation: Allocation | None = None,
    seed: int = 0,
    blocks: Sequence[str] = (),
) -> Plan:
    """Decide what stays, from scores and a budget, a ratio or counts by hand; `blocks` go first."""
    by_hand = kept_counts or {}
    blocks = [*blocks, *(n for n, count in by_hand.items() if graph.blocks.find(n) and not count)]
    whole, graph = graph, without_blocks(graph, checked_blocks(graph, blocks))
    if blocks:
        groups = [graph.group(g.name) for g in groups if graph.group(g.name).locked is None]
    if kept_counts is not None:
        counts = {n: count for n, count in kept_counts.items() if not graph.blocks.find(n)}
        asked = "counts by hand"
    elif not groups:
        counts, asked = {}, budget.text if budget is not None else ""
    else:
        settings = allocation or Allocation()
        if settings.cost_exponent is None and settings.scope in ("auto", "global"):
            settings = replace(settings, cost_exponent=scores.cost_exponent)
        if settings.scope == "measured" and not scores.measured:
            raise ConfigError("scope 'measured'", "these scores hold no measured losses", "score with measured=True")
        values = scores.measured if settings.scope == "measured" else scores.values
        bounds = budget if budget is None or not blocks else budget.absolute(CostModel(whole).dense())
        counts = allocate(
            graph, groups, values, budget=bounds, pruning_ratio=pruning_ratio, allocation=settings, seed=seed
        )  # fmt: skip
        asked = budget.text if budget is not None else f"pruning_ratio={pruning_ratio}"
        asked += "" if settings.scope in ("auto", "global") else f", {settings.scope}"
    kept = select([g for g in groups if g.name in counts], scores.values, counts)
    rows = {g.name: g.rows for g in groups}
    probability = {
        name: keep_probability(values, scores.replicas[name], counts[name], rows=rows.get(name))
        if name in scores.replicas
        else scores.posteriors[name].keep_probability(counts[name], rows=rows.get(name))
        for name, values in scores.values.items()
        if (name in scores.replicas or name in scores.posteriors) and counts.get(name, len(values)) < len(values)
    }
    kept |= dict.fromkeys(blocks, ())
    plan = Plan.from_kept(whole, kept, keep_probability=probability, method=scores.method, asked=asked)
    return plan.with_notes(*remarks(plan, groups, scores.values, budget=budget, pruning_ratio=pruning_ratio))


def prunable_groups(
    graph: Graph,
    model: nn.Module,
    ignored_layers: Sequence[Ignored] = (),
    *,
    head_dims: bool = False,
    inexact: bool = False,
) -> list[ChannelGroup]:
    """The prunable groups without those that an ignored layer writes and, unless asked for, inexact and inside heads.

    Raises:
        ConfigError: an entry that matches no layer of the model.
    """
    names = matching(ignored_layers, model)
    groups = [g for g in graph.groups(inexact=inexact) if head_dims or not g.inside_heads]
    return [g for g in groups if not names & {s.tensor.rpartition(".")[0] for s in g.writers}]
