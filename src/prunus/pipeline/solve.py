"""How a problem is solved, by the kind of the method: the only place where kinds are told apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from prunus.files.stagefile import Stage
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.learning.findings import Findings, LearnedMasks, Scores
from prunus.learning.masks import learn_masks, patterns_of
from prunus.learning.measured import first_batches
from prunus.learning.problem import Problem
from prunus.learning.routes import Load, loads_of
from prunus.learning.stages import prune_in_stages
from prunus.learning.strength import worth_of, worth_told
from prunus.masks.filters import plan_of_filters
from prunus.methods.base import (
    GradientCriterion,
    MaskMethod,
    Method,
    PosteriorMethod,
    RoutingCriterion,
    StagedMethod,
    WeightCriterion,
)
from prunus.pipeline.depth import open_blocks, planned_with_blocks
from prunus.pipeline.experts import open_experts, planned_with_experts
from prunus.pipeline.meeting import met
from prunus.pipeline.planning import make_plan, planned, prunable_groups, score
from prunus.pipeline.repairing import prepare, repaired
from prunus.plan.plan import Plan
from prunus.plan.request import check, remarks
from prunus.plan.rounding import uneven
from prunus.proof.apply import apply_and_verify_
from prunus.proof.ownclass import Survivors, equalised, survivors
from prunus.proof.verification import Verification
from prunus.proof.weightmasks import plan_patterns, verify_masks, with_masks
from prunus.refit.told import Refit
from prunus.runtime.shown import Shown
from prunus.surgery.configuration import keep_configuration_true_


@dataclass(frozen=True, repr=False)
class Result(Shown):
    """What `prune` made.

    Attributes:
        model: the smaller model; of the user's own class unless `verification.rewritten`.
        plan: what was kept, asked and got.
        findings: what the method found out: scores and posteriors of units, or masks and their logits.
        verification: what was proven about the model.
        graph: the analysis of the dense model.
        refits: what repair did, layer by layer; empty without it.
        loads: tokens of the experts of each layer, before and after some went; empty where none did or without data.
    """

    model: nn.Module
    plan: Plan
    findings: Findings
    verification: Verification
    graph: Graph = field(repr=False)
    refits: tuple[Refit, ...] = field(default=(), repr=False)
    loads: tuple[Load, ...] = field(default=(), repr=False)

    def line(self) -> str:
        """What the plan keeps, and how exactly that was proven."""
        return f"{self.plan.line()}, proven to {self.verification.max_error:.1e}"

    def explain(self) -> str:
        """The plan, and what was proven."""
        return "\n".join([self.plan.explain(), *(load.explain() for load in self.loads), self.verification.explain()])

    @property
    def scores(self) -> Scores:
        """Score of every unit, and the posteriors if the method learned any; empty where there are masks instead."""
        found = self.findings
        return found if isinstance(found, Scores) else Scores({}, method=found.method)

    @property
    def masked(self) -> LearnedMasks | None:
        """Masks inside weights, their logits and history; None for methods of units."""
        return self.findings if isinstance(self.findings, LearnedMasks) else None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What each stage found, for methods that work in stages."""
        return self.scores.stages


@singledispatch
def solve(method: Method, problem: Problem) -> Result:
    """The smaller network by a method.

    Raises:
        TypeError: the method is of no known kind.
        PruneError: one of its kinds.
    """
    raise TypeError(f"{type(method).__name__} is none of the kinds of methods")


@solve.register(WeightCriterion)
@solve.register(GradientCriterion)
@solve.register(RoutingCriterion)
@solve.register(PosteriorMethod)
def _at_once(method: Method, problem: Problem) -> Result:
    """Score all units, plan, cut, prove."""
    groups, kind = _open_groups(problem)
    blocks = open_blocks(problem)
    experts = open_experts(problem, method)
    check(problem.request, problem.graph, groups, blocks, experts)
    prepared, unprepared = prepare(problem)

    def plan_of(problem: Problem) -> tuple[Plan, Problem]:
        request = problem.request
        if blocks and request.budget is not None:
            plan, scores = planned_with_blocks(problem, groups, method, prepared, blocks)
        elif experts:
            plan, scores = planned_with_experts(problem, groups, experts, method, prepared)
        else:
            plan, scores, settled = planned(problem, groups, method, prepared)
            request = replace(request, allocation=settled)
        if kind.equal:
            counts = equalised({g.name: len(g.kept) for g in plan.groups}, kind.equal)
            alike = make_plan(problem.graph, groups, scores, kept_counts=counts, seed=problem.seed)
            left = remarks(alike, groups, scores.values, budget=request.budget, pruning_ratio=request.ratio)
            plan = replace(alike, asked=plan.asked).with_notes(*left)
        return plan, replace(problem, request=request, scores=scores)

    plan, solved = met(problem, plan_of)
    scores = solved.scores
    assert scores is not None
    plan = plan.with_notes(*kind.notes, *kind.equal_notes)
    dense, refits, told = repaired(problem, plan, prepared)
    plan = plan.with_notes(*unprepared, *told)
    smaller, verification = apply_and_verify_(
        dense, plan, problem.example_inputs, rewrite_graph="own_class" not in problem.allow
    )
    keep_configuration_true_(smaller, plan)
    plan = plan.with_notes(*verification.notes) if verification.rewritten else plan
    loads, untold = loads_of(problem.model, smaller, plan, _first_inputs(problem)) if experts else ((), ())
    return Result(smaller, plan.with_notes(*untold), scores, verification, problem.graph, refits, loads)


@solve.register(StagedMethod)
def _in_stages(method: StagedMethod, problem: Problem) -> Result:
    """Counts from a first look at all groups at once if there is a budget, then stage after stage."""
    groups, kind = _open_groups(problem)
    alike = {name for names in kind.equal for name in names}
    groups = [g for g in groups if g.name not in alike]
    request, seed, progress = problem.request, problem.seed, problem.progress
    if request.allocation.scope == "auto":
        request = replace(request, allocation=replace(request.allocation, scope="global"))
    check(request, problem.graph, groups)
    learning = problem.learning(method.name)
    counts, asked = request.counts, "what the noise keeps" if request.counts is None else "counts by hand"
    whole = [f"{', '.join(names)} stay whole: the class cuts them into equal pieces" for names in kind.equal]
    notes = [*kind.notes, *whole]
    if request.budget is not None or request.ratio is not None:
        measured = request.allocation.scope == "measured"
        look = replace(method, epochs=1)
        first = score(
            problem.model,
            groups,
            look,
            learning.loader,
            learning.loss_fn,
            seed=seed,
            progress=progress,
            measured=measured,
            steps=problem.steps,
        )

        def plan_of(problem: Problem) -> tuple[Plan, Problem]:
            asked = problem.request
            plan = make_plan(
                problem.graph, groups, first, budget=asked.budget, pruning_ratio=asked.ratio,
                allocation=request.allocation, seed=seed,
            )  # fmt: skip
            return plan, problem

        plan, _ = met(problem, plan_of)
        counts, asked = {g.name: len(g.kept) for g in plan.groups}, plan.asked
        notes += plan.notes
    if counts is None and method.follows_information and groups:
        worth = worth_of(problem.model, groups, learning)
        learning, notes = replace(learning, worth=worth), [*notes, worth_told(worth)]
    done = prune_in_stages(problem, groups, method, learning, counts)
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
        for n, p in stage.keep_probability.items()
        if len(done.kept[n]) < len(p)
    }
    final = Plan.from_kept(
        problem.graph,
        done.kept,
        keep_probability=probability,
        method=method.name,
        asked=asked,
        notes=notes,
    )
    keep_configuration_true_(done.model, final)
    scores = replace(done.scores, stages=done.stages)
    return Result(done.model, final, scores, done.verification, problem.graph)


@solve.register(MaskMethod)
def _inside_weights(method: MaskMethod, problem: Problem) -> Result:
    """Put a pattern on layers, learn the masks with the weights, write them down in the plan, prove."""
    patterns = patterns_of(method, problem)
    planned = plan_patterns(problem.graph, problem.model, patterns, method)
    learning = problem.learning(method.name)
    prepared, notes = prepare(problem)
    refits: tuple[Refit, ...] = ()

    def refit(masks: Mapping[str, Tensor]) -> nn.Module | None:
        nonlocal refits, notes
        dense, refits, told = repaired(problem, with_masks(planned, masks), prepared)
        notes = (*notes, *told)
        return dense if refits else None

    model, found, proof = learn_masks(method, problem, learning, patterns, refit if prepared else None)
    if refits and not found.refitted:
        refits, notes = (), ("not repaired: the weights that trained along with the masks are nearer",)
    if proof is None:
        plan = with_masks(planned, found.masks).with_notes(*notes)
        proof = verify_masks(model, plan, problem.example_inputs)
    else:
        plan = plan_of_filters(problem.graph, found.masks, planned.asked, method.name)
        plan = plan.with_notes(*proof.notes) if proof.rewritten else plan
    return Result(model, plan, found, proof, problem.graph, refits)


def _first_inputs(problem: Problem) -> list[Any]:
    """Inputs of the first batches of the data; none without data."""
    loader = problem.learned_from()[0]
    return [] if loader is None else [inputs for inputs, _ in first_batches(loader, problem.seed)]


def _open_groups(problem: Problem) -> tuple[list[ChannelGroup], Survivors]:
    """The groups that may lose units, and what the model's own class survives of that, if that is asked."""
    allow, model, graph = problem.allow, problem.model, problem.graph
    groups = prunable_groups(
        graph, model, problem.ignored_layers, head_dims="head_dims" in allow, inexact="inexact" in allow
    )
    kind = Survivors(groups, (), ())
    if "own_class" in allow:
        kind = survivors(model, graph, groups, problem.example_inputs)
    return list(kind.groups), kind
