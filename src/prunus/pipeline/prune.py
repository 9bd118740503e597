"""`prune()`: the order of things, written once. Trace, score, allocate, plan, cut, prove."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.batches import Loader, as_batches
from prunus.data.losses import own_loss
from prunus.errors import ConfigError
from prunus.files.stagefile import Stage
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.graph.trace import trace
from prunus.layers.submodules import Ignored, matching
from prunus.learning.fit import Scores, fit
from prunus.learning.measured import first_batches, masked_loss, measured_scores
from prunus.learning.stages import prune_in_stages
from prunus.methods.base import Method, PosteriorMethod, StagedMethod, WeightCriterion
from prunus.methods.registry import resolve
from prunus.plan.allocation import Allocation, Scope, allocate, select
from prunus.plan.budget import Budget
from prunus.plan.plan import Plan
from prunus.plan.request import Request, check, remarks, requested
from prunus.plan.rounding import uneven
from prunus.proof.apply import apply_and_verify_
from prunus.proof.ownclass import Survivors, equalised, survivors
from prunus.proof.verification import Verification
from prunus.runtime.copies import check_copyable, copied
from prunus.runtime.entry import entry
from prunus.runtime.fields import as_seed
from prunus.runtime.precision import lower
from prunus.surgery.configuration import keep_configuration_true_


@dataclass(frozen=True)
class Result:
    """What `prune` made.

    Attributes:
        model: the smaller model; of the user's own class unless `verification.rewritten`.
        plan: what was kept, asked and got.
        scores: score of every unit, and the posteriors if the method learned any.
        verification: what was proven about the model.
        graph: the analysis of the dense model.
        stages: what each stage found, for methods that work in stages.
    """

    model: nn.Module
    plan: Plan
    scores: Scores
    verification: Verification
    graph: Graph = field(repr=False)
    stages: tuple[Stage, ...] = ()


@entry(unchanged=True)
def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    method: Method | str = "dirichlet",
    budget: str | Budget | None = None,
    pruning_ratio: float | None = None,
    kept_counts: Mapping[str, int] | None = None,
    data: Iterable[Any] | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    ignored_layers: Sequence[Ignored] = (),
    head_dims: bool = False,
    inexact: bool = False,
    follow_branches: bool = False,
    own_class: bool = False,
    allocation: Allocation | None = None,
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Result:
    """Make a trained network smaller; the given model is not touched.

    Args:
        model: the trained network.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments, batch first.
        method: a method object, or one of its names (`dirichlet`, `l1`, `taylor`, ...).
        budget: such as `"macs<=50%"` or `"macs<=50%, params<=20%"`; or
        pruning_ratio: fraction of all units that goes; or
        kept_counts: units to keep, by group name; groups that are not named stay whole.
        data: batches, to be looped over several times: (inputs, targets), (x1, x2, y) or dicts, see
            `prunus.data.as_batches`; only methods that look at weights alone need none.
        loss_fn: `loss_fn(outputs, targets)` -> mean loss, a function or a module; gradient criteria ask for sums where
            it has a `reduction`. None takes the loss that the model itself returns for batches that are dicts.
        ignored_layers: modules, module types or name globs whose output units stay.
        head_dims: also remove dimensions inside attention heads, the same number in each: of values, and of queries and
            keys (in pairs where rotary positions turn them). Few classes take keys and values of unequal widths: where
            a layer keeps different shares of the two, expect a rewritten graph.
        inexact: also remove units across which a normalisation takes statistics (the stream of a transformer). Removal
            then differs from masking by definition: what is left is held against the masked network whose
            normalisations take statistics of what stays. Recover afterwards.
        follow_branches: as for `trace`.
        own_class: let only those groups and counts through that the class's own code survives, so that no rewritten
            graph takes its place: groups that its code can't lose stay, halves of a `chunk` keep equal counts (the
            smaller of the two). A note in the plan says which. Methods in stages leave such halves whole.
        allocation: scope, cost exponent, rounding, floor. By default the scope is `auto`: of the global plan and the
            one by measured losses that which costs less loss on the first batches, where there are data; methods in
            stages take `global`.
        seed: for everything random.
        progress: show a progress bar where there is a terminal.
        checkpoint: methods that work in stages write this file after each of them.
        resume: go on from the checkpoint if it is there.

    A method with a rule of its own (`rbp`) needs no budget, ratio or counts.

    Returns:
        The smaller model with its plan, scores and proof.

    Raises:
        PruneError: one of its kinds, naming the thing and what to do; the model is as it was.
    """
    chosen, staged = resolve(method), isinstance(resolve(method), StagedMethod)
    request, seed = requested(budget, pruning_ratio, kept_counts, allocation, optional=staged), as_seed(seed)
    if not staged and (resume or checkpoint is not None):
        where = "resume=True" if resume else "checkpoint"
        raise ConfigError(where, f"method {chosen.name!r} has no stages", "leave it out, or use method='rbp'")
    check_copyable(model)
    graph = trace(model, example_inputs, follow_branches=follow_branches)
    groups = prunable_groups(graph, model, ignored_layers, head_dims=head_dims, inexact=inexact)
    kind = survivors(model, graph, groups, example_inputs) if own_class else Survivors(groups, (), ())
    alike = {name for names in kind.equal for name in names} if staged else set()
    groups = [g for g in kind.groups if g.name not in alike]
    if staged and request.allocation.scope == "auto":
        request = replace(request, allocation=replace(request.allocation, scope="global"))
    check(request, graph, groups)
    batches, loss = _learned_from(data, loss_fn, model, example_inputs)
    if isinstance(chosen, StagedMethod):
        return _in_stages(
            model, example_inputs, graph, groups, chosen, batches, loss, request, seed, progress, checkpoint, resume
        )
    plan, scores = _planned(model, graph, groups, chosen, batches, loss, request, seed, progress)
    if kind.equal:
        counts = equalised({g.name: len(g.kept) for g in plan.groups}, kind.equal)
        plan = replace(make_plan(graph, groups, scores, kept_counts=counts, seed=seed), asked=plan.asked)
    plan = plan.with_notes(*kind.notes)
    smaller, verification = apply_and_verify_(copied(model), plan, example_inputs, rewrite_graph=not own_class)
    keep_configuration_true_(smaller, plan)
    plan = plan.with_notes(*verification.notes) if verification.rewritten else plan
    return Result(smaller, plan, scores, verification, graph)


def _planned(
    model: nn.Module,
    graph: Graph,
    groups: list[ChannelGroup],
    method: Method,
    data: Loader | None,
    loss_fn: Callable[..., Tensor] | None,
    request: Request,
    seed: int,
    progress: bool,
) -> tuple[Plan, Scores]:
    """The plan asked for; for the scope `auto` that of two which costs less loss on the first batches."""
    asked = request.allocation
    if asked.scope == "auto" and (request.counts is not None or len(groups) < 2 or data is None or loss_fn is None):
        asked = replace(asked, scope="global")
    measured = asked.scope in ("auto", "measured") and request.counts is None
    scores = score(model, groups, method, data, loss_fn, seed=seed, progress=progress, measured=measured)

    def planned(scope: Scope) -> Plan:
        exponent = asked.cost_exponent if scope == "global" else None
        return make_plan(
            graph, groups, scores, budget=request.budget, pruning_ratio=request.ratio, kept_counts=request.counts,
            allocation=replace(asked, scope=scope, cost_exponent=exponent), seed=seed,
        )  # fmt: skip

    if asked.scope != "auto":
        return planned(asked.scope), scores
    few = first_batches(data, seed)  # type: ignore[arg-type]
    plans = [planned("global"), planned("measured")]
    losses = [masked_loss(model, groups, plan.kept, few, loss_fn) for plan in plans]  # type: ignore[arg-type]
    return plans[lower(losses[1], than=losses[0])], scores


def _in_stages(
    model: nn.Module,
    example_inputs: Any,
    graph: Graph,
    groups: list[ChannelGroup],
    method: StagedMethod,
    data: Loader | None,
    loss_fn: Callable[..., Tensor] | None,
    request: Request,
    seed: int,
    progress: bool,
    checkpoint: str | os.PathLike[str] | None,
    resume: bool,
) -> Result:
    """Counts from a first look at all groups at once if there is a budget, then stage after stage."""
    batches, loss_fn = _needed(method, data, loss_fn)
    counts, asked = request.counts, "what the noise keeps" if request.counts is None else "counts by hand"
    notes: list[str] = []
    if request.budget is not None or request.ratio is not None:
        measured = request.allocation.scope == "measured"
        look = replace(method, epochs=1)
        first = score(model, groups, look, data, loss_fn, seed=seed, progress=progress, measured=measured)
        plan = make_plan(
            graph, groups, first, budget=request.budget, pruning_ratio=request.ratio, allocation=request.allocation,
            seed=seed,
        )  # fmt: skip
        counts, asked, notes = {g.name: len(g.kept) for g in plan.groups}, plan.asked, list(plan.notes)
    done = prune_in_stages(
        model,
        example_inputs,
        graph,
        groups,
        method,
        batches,
        loss_fn,
        num_data=batches.num_labels(),
        counts=counts,
        seed=seed,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )
    notes += [
        f"every unit of {name} was judged useless; its floor of {kept} stays"
        for stage in done.stages
        for name, natural, kept in zip(stage.groups, stage.natural, stage.kept, strict=True)
        if natural == 0 and counts is None
    ]
    notes += filter(None, [uneven(groups, done.kept)])
    probability = {
        n: torch.tensor(p, dtype=torch.float32, device="cpu")
        for stage in done.stages
        for n, p in stage.probability.items()
        if len(done.kept[n]) < len(p)
    }
    final = Plan.from_kept(
        graph,
        done.kept,
        keep_probability=probability,
        method=method.name,
        asked=asked,
        notes=tuple(dict.fromkeys(notes)),
    )
    keep_configuration_true_(done.model, final)
    return Result(done.model, final, done.scores, done.verification, graph, done.stages)


def _learned_from(
    data: Iterable[Any] | None, loss_fn: Callable[..., Tensor] | None, model: nn.Module, example_inputs: Any
) -> tuple[Loader | None, Callable[..., Tensor] | None]:
    """Batches in one form; without a loss function the model's own loss, where batches are dicts with labels."""
    if loss_fn is not None and not callable(loss_fn):
        raise ConfigError("loss_fn", f"a {type(loss_fn).__name__} can't be called", "give loss_fn(outputs, targets)")
    if data is None:
        return None, loss_fn
    batches = as_batches(data, model, example_inputs, own_loss=loss_fn is None)
    if loss_fn is None and batches.labelled():
        return batches, own_loss
    return batches, loss_fn


def _needed(
    method: Method, data: Loader | None, loss_fn: Callable[..., Tensor] | None
) -> tuple[Loader, Callable[..., Tensor]]:
    """The data and the loss that a method needs, after a look at the first batch.

    Raises:
        ConfigError: either is missing.
        DataError: there is no batch, or one of no known form.
    """
    if data is None or loss_fn is None:
        raise ConfigError(
            f"method {method.name!r}",
            "the scores are made from data, and data or loss_fn is missing",
            "pass data (batches of inputs and targets) and loss_fn, or use a weight criterion such as 'l1' and a scope "
            "that measures nothing",
        )
    data.first()
    data.warn_of_shared_data()
    return data, loss_fn


@entry()
def score(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    method: Method,
    data: Iterable[Any] | None,
    loss_fn: Callable[..., Tensor] | None,
    *,
    seed: int = 0,
    progress: bool = False,
    measured: bool = False,
) -> Scores:
    """Score the units of the groups by any method, and measure their losses if the allocation will ask for them.

    Raises:
        ConfigError: the method or the measurement needs data and there are none.
    """
    if not measured and isinstance(method, WeightCriterion):
        return fit(model, groups, method, [], nn.functional.cross_entropy, num_data=1, seed=seed, progress=progress)
    batches, loss = _needed(method, None if data is None else as_batches(data, model), loss_fn)
    count = batches.num_labels() if isinstance(method, PosteriorMethod) else 1
    found = fit(model, groups, method, batches, loss, num_data=count, seed=seed, progress=progress)
    if not measured:
        return found
    few = first_batches(batches, seed)
    return replace(found, measured=measured_scores(model, groups, found.values, few, loss, progress=progress))


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
) -> Plan:
    """Decide what stays, from scores and a budget, a ratio or counts by hand."""
    if kept_counts is not None:
        counts = dict(kept_counts)
        asked = "counts by hand"
    else:
        settings = allocation or Allocation()
        if settings.cost_exponent is None and settings.scope in ("auto", "global"):
            settings = replace(settings, cost_exponent=scores.cost_exponent)
        if settings.scope == "measured" and not scores.measured:
            raise ConfigError("scope 'measured'", "these scores hold no measured losses", "score with measured=True")
        values = scores.measured if settings.scope == "measured" else scores.values
        counts = allocate(
            graph, groups, values, budget=budget, pruning_ratio=pruning_ratio, allocation=settings, seed=seed
        )  # fmt: skip
        asked = budget.text if budget is not None else f"pruning_ratio={pruning_ratio}"
        asked += "" if settings.scope in ("auto", "global") else f", {settings.scope}"
    kept = select([g for g in groups if g.name in counts], scores.values, counts)
    probability = {
        name: posterior.keep_probability(counts[name])
        for name, posterior in scores.posteriors.items()
        if name in counts and counts[name] < posterior.units
    }
    plan = Plan.from_kept(graph, kept, keep_probability=probability, method=scores.method, asked=asked)
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
