"""Repair as a step of `prune`: what it looks at is made once, plans are tried, and the chosen one is repaired."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from statistics import median

import torch
from torch import nn

from prunus.data.batches import Loader
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.taught import Taught, taught
from prunus.errors import PruneError
from prunus.files.fingerprint import tree_digest, weights_digest
from prunus.learning.problem import Problem
from prunus.plan.plan import Plan
from prunus.refit.calibration import Calibration, calibration
from prunus.refit.config import RepairConfig
from prunus.refit.prepared import Prepared
from prunus.refit.repair import repaired_copy
from prunus.refit.told import Refit
from prunus.refit.trials import Trials
from prunus.runtime.copies import copied

FEW = RepairConfig(examples=512, rows=20, least_rows=4096, most_rows=8192, held_out=2)
"""The repairs that plans are compared by."""


def prepare(problem: Problem) -> tuple[Prepared | None, tuple[str, ...]]:
    """What repair needs, if it is wanted and there are data; and why there is none, if it can't be made."""
    loader, config = problem.learned_from()[0], problem.repair
    if problem.prepared is not None or config is None or loader is None:
        return problem.prepared, ()
    model, seed = problem.model, problem.seed
    inputs = Loader(loader.data, replace(loader.form, own_loss=False))
    whole = Plan.from_kept(problem.graph, {})
    try:
        data = calibration(model, whole, inputs, config, seed)
        distance = loader.loss if isinstance(loader, Taught) else taught(model, inputs, DenseOutputs(), seed)[1]
        assert isinstance(distance, DenseOutputs)
    except PruneError as refusal:
        return None, (_refused(refusal),)
    few = replace(FEW, examples=min(FEW.examples, config.examples), layers=config.layers, sums=config.sums)
    return Prepared(data, Trials(model, data.first(few.examples), distance, few, seed)), ()


def repaired(
    problem: Problem, plan: Plan, prepared: Prepared | None
) -> tuple[nn.Module, tuple[Refit, ...], tuple[str, ...]]:
    """A copy of the dense network for the plan, repaired if it can be; what was done, and what is told of it."""
    smaller = bool(plan.patterns) or any(len(g.kept) < g.units for g in plan.groups)
    if prepared is None or problem.repair is None or not smaller:
        return copied(problem.model), (), ()
    steps = problem.steps
    origin = {} if steps is None else _origin(problem, plan)
    kept = None if steps is None else steps.finished("repaired", origin)
    if kept is not None:
        model, refits = copied(problem.model), tuple(Refit(**refit) for refit in kept["refits"])
        model.load_state_dict({**model.state_dict(), **kept["changed"]})
        return model, refits, (described(refits, prepared.data),)
    try:
        done = repaired_copy(
            problem.model, plan, prepared.data, problem.repair, seed=problem.seed, progress=problem.progress
        )
    except PruneError as refusal:
        return copied(problem.model), (), (_refused(refusal),)
    if steps is not None:
        dense = problem.model.state_dict()
        changed = {n: t for n, t in done.model.state_dict().items() if not torch.equal(t, dense[n])}
        steps.finish("repaired", origin, {"changed": changed, "refits": [asdict(r) for r in done.refits]})
    return done.model, done.refits, (described(done.refits, prepared.data),)


def _origin(problem: Problem, plan: Plan) -> dict[str, str]:
    """What goes into a repair."""
    return {
        "model": weights_digest(problem.model),
        "data": problem.data_digest(),
        "plan": tree_digest(plan.to_json()),
        "repair": repr(problem.repair),
        "seed": str(problem.seed),
    }


def described(refits: Iterable[Refit], data: Calibration) -> str:
    """What repair did, in a sentence."""
    refits = list(refits)
    changed = [r for r in refits if not r.reason]
    if not changed:
        return f"repair found nothing to win back in {len(refits)} layers"
    won = median(r.won_back for r in changed)
    names = ", ".join(r.layer for r in refits if r.reason)
    left = f"; left as they were: {names}" if names else ""
    return (
        f"repair refitted {len(changed)} layers on {data.examples:,} examples; on held-out ones half of them win back "
        f"{won:.0%} or more of the error that removal makes{left}"
    )


def _refused(refusal: PruneError) -> str:
    return f"not repaired: {refusal.where}: {refusal.what}"
