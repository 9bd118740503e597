"""Stage after stage: learn the noise of one group, fold, delete for real, tune, go on with the smaller network.

With `simultaneous` there is one stage for all groups. A checkpoint is written after every stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.export.graph_signature import InputKind

from prunus.errors import ConfigError, DataError
from prunus.files.atomic import check_file
from prunus.files.fingerprint import data_digest, weights_digest
from prunus.files.stagefile import Stage, StageState, load_stages, resume_weights_, save_stages
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup, Slot
from prunus.graph.trace import trace
from prunus.learning.findings import Scores
from prunus.learning.fit import fit_with_weights
from prunus.learning.kept import made_from
from prunus.learning.problem import Learning, Problem
from prunus.learning.strength import after
from prunus.methods.base import StagedMethod
from prunus.plan.allocation import select
from prunus.plan.plan import Plan
from prunus.posteriors.base import DecidingPosterior
from prunus.proof.apply import apply_and_verify_
from prunus.proof.verification import Verification
from prunus.recovery.tune import tune_
from prunus.runtime.copies import copied
from prunus.runtime.processes import checked_by_first, rank
from prunus.surgery.fold import fold_


@dataclass(frozen=True)
class Recursion:
    """The end of the recursion.

    Attributes:
        model: the smaller model.
        kept: group -> indices that stayed.
        stages: one record per stage, in order.
        scores: what the posteriors said, group by group.
        verification: the worst of the stages' proofs.
    """

    model: nn.Module
    kept: Mapping[str, tuple[int, ...]]
    stages: tuple[Stage, ...]
    scores: Scores
    verification: Verification


def prune_in_stages(
    problem: Problem,
    groups: Sequence[ChannelGroup],
    method: StagedMethod,
    learning: Learning,
    counts: Mapping[str, int] | None = None,
) -> Recursion:
    """Prune a copy of the model group by group, in data-flow order.

    A residual stream is one group and takes its turn where its first writer stands: its noise is learned given
    everything before that layer, and all its readers are gated by the same draw.

    Args:
        problem: the trained network, which is not touched, its analysis, and where stages are written down.
        groups: the groups that may lose units.
        method: posterior, rule and schedule.
        learning: data and loss; stage i has a seed of its own, so that resumed and unbroken runs agree.
        counts: units to keep by group; None lets the noise decide.

    Raises:
        ConfigError: no groups; a model whose surgery needs a rewritten graph before the last stage.
        ArtifactError: a checkpoint that is damaged or of another run.
        DataError: a stage met NaN or infinity; the message names it, and the checkpoint holds the stages before.
    """
    if not groups:
        raise ConfigError("groups", "there is nothing to prune", "graph.explain() says what is locked and why")
    model, graph, example_inputs = problem.model, problem.graph, problem.example_inputs
    learning = learning.counted()
    ordered = _in_order(groups)
    plan_of_stages = [tuple(g.name for g in ordered)] if method.simultaneous else [(g.name,) for g in ordered]
    checkpoint = problem.checkpoint
    path = None if checkpoint is None else Path(checkpoint.path)
    identity = {} if path is None else _identity(problem, method, learning, counts, plan_of_stages)
    if path is not None:
        checked_by_first(lambda: check_file(path))
    state = StageState({}, [], {}, 0.0)
    if checkpoint is not None and checkpoint.resume and path is not None and path.exists():
        # Ranks may see parts of the data each; the first one's is what was written down.
        checked_by_first(lambda: load_stages(path, identity, plan_of_stages))
        state = load_stages(path, identity if rank() == 0 else {}, plan_of_stages)
    current, verification = copied(model), None
    if state.stages:
        assert path is not None
        current, verification = apply_and_verify_(current, Plan.from_kept(graph, state.kept), example_inputs)
        resume_weights_(current, state, path)
        verification = replace(verification, max_error=state.error)
    posteriors: dict[str, DecidingPosterior] = {}
    for number in range(len(state.stages), len(plan_of_stages)):
        names = plan_of_stages[number]
        try:
            current, stage, kept, found, proof = _stage(
                current, problem, names, method,
                replace(
                    learning,
                    seed=learning.seed + 1009 * number,
                    worth=after(learning.worth, [s.loss for s in state.stages]),
                ),
                counts,
            )  # fmt: skip
        except DataError as error:
            saved = (
                f"{number} stages before it are in {path}" if path else "checkpoint= would keep the stages before it"
            )
            what = f"at {error.where}: {error.what}"
            raise DataError(f"stage {number + 1} ({', '.join(names)})", what, f"{error.fix}; {saved}") from error
        if proof.rewritten and number + 1 < len(plan_of_stages):
            raise ConfigError(
                f"group {names[0]!r}",
                "cutting it needs a rewritten graph, on which later stages have no layers to gate",
                "use simultaneous=True, or put the layer into ignored_layers",
            )
        state.kept.update(kept)
        state.stages.append(stage)
        posteriors.update(found)
        worst = proof.max_error if verification is None else max(verification.max_error, proof.max_error)
        verification = replace(proof, max_error=worst)
        if path is not None and rank() == 0:
            save_stages(path, identity, StageState(state.kept, state.stages, current.state_dict(), worst))
        if learning.steps is not None:
            learning.steps.forget("learning", "tuning")  # of a stage that is over
    assert verification is not None
    values = {n: torch.tensor(v, dtype=torch.float32, device="cpu") for s in state.stages for n, v in s.score.items()}
    scores = Scores(values, posteriors, method.name, tuple(s.loss for s in state.stages), method.cost_exponent)
    return Recursion(current, state.kept, tuple(state.stages), scores, verification)


def _identity(
    problem: Problem,
    method: StagedMethod,
    learning: Learning,
    counts: Mapping[str, int] | None,
    order: Sequence[Sequence[str]],
) -> dict[str, str]:
    """What a checkpoint must have been made from, by kind."""
    return {
        "model": f"{problem.graph.model} ({weights_digest(problem.model)})",
        "data": f"{learning.labels} targets ({data_digest(learning.loader.data)})",
        "method": repr(method),
        "seed": str(learning.seed),
        "groups": repr(list(order)),
        "request": "none" if counts is None else repr(dict(counts)),
        "branches": repr(problem.graph.followed),
    }


def _in_order(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """In data-flow order; dimensions inside heads come before these, whose removal would number them anew."""
    order = {g.name: g.order for g in groups}
    return sorted(groups, key=lambda g: (order.get(g.within or g.name, g.order), g.within is None, g.order))


def _stage(
    current: nn.Module,
    problem: Problem,
    names: Sequence[str],
    method: StagedMethod,
    learning: Learning,
    counts: Mapping[str, int] | None,
) -> tuple[nn.Module, Stage, dict[str, tuple[int, ...]], dict[str, DecidingPosterior], Verification]:
    example_inputs, seed = problem.example_inputs, learning.seed
    graph = trace(current, example_inputs, follow_branches=problem.graph.followed)
    groups = [graph.group(n) for n in names]
    weights = trainable_from(current, graph, groups, method.train_weights)
    scores = fit_with_weights(current, groups, method, learning, weights)
    posteriors = {n: p for n, p in scores.posteriors.items() if isinstance(p, DecidingPosterior)}
    natural = {n: int(p.kept().sum()) for n, p in posteriors.items()}
    wanted = {g.name: _count(g, posteriors[g.name], method.floor, counts) for g in groups}
    kept = select(groups, scores.values, wanted)
    for group in groups:
        fold_(current, graph, group, posteriors[group.name].mean().detach())
    plan = Plan.from_kept(graph, kept, method=method.name)
    smaller, proof = apply_and_verify_(current, plan, example_inputs)
    tuned = [p for p in smaller.parameters() if p.requires_grad]
    if method.tune_epochs and tuned:
        tune_(
            smaller, tuned, learning.loader, learning.loss_fn, epochs=method.tune_epochs, lr=method.weight_lr,
            seed=seed + 1, precision=learning.precision, progress=learning.progress, steps=learning.steps,
            made_from=made_from(smaller, method, learning, {"stage": list(names)}),
        )  # fmt: skip
    stage = Stage(
        groups=tuple(names),
        units=tuple(g.units for g in groups),
        kept=tuple(len(kept[n]) for n in names),
        natural=tuple(natural[n] for n in names),
        score={n: tuple(scores.values[n].tolist()) for n in names},
        keep_probability={
            g.name: tuple(posteriors[g.name].keep_probability(len(kept[g.name]), seed=seed, rows=g.rows).tolist())
            for g in groups
        },
        loss=scores.history[-1],
        error=proof.max_error,
    )
    return smaller, stage, kept, posteriors, proof


def _count(group: ChannelGroup, posterior: DecidingPosterior, floor: float, counts: Mapping[str, int] | None) -> int:
    """How many units stay: as many as asked, or as the noise says, never below the floor, equal counts per row."""
    if counts is not None:
        return counts.get(group.name, group.units)
    keep = posterior.kept().cpu()
    if group.rows is None:
        natural = int(keep.sum())
    else:
        rows = torch.from_numpy(group.rows)
        natural = group.multiple * int(torch.stack([keep[rows == r].sum() for r in range(group.multiple)]).max())
    least = max(1, round(floor * group.units))
    step = group.multiple
    return min(group.units, max(natural, -(-least // step) * step))


def trainable_from(model: nn.Module, graph: Graph, groups: Sequence[ChannelGroup], which: str) -> list[nn.Parameter]:
    """The parameters that train along: none, all, or those first used at or after the groups' first writer."""
    if which == "none":
        return []
    first = _first_use(graph)
    start = 0 if which == "all" else min(first[s.tensor] for g in groups for s in _written(g, first))
    named = dict(model.named_parameters())
    return [p for n, p in named.items() if p.requires_grad and first.get(n, -1) >= start]


def _written(group: ChannelGroup, first: dict[str, int]) -> Sequence[Slot]:
    """The stored tensors that write a group; where a layer computes its weight, all that hold the units."""
    return group.slots if any(s.tensor not in first for s in group.writers) else group.writers


def _first_use(graph: Graph) -> dict[str, int]:
    """Position in the captured graph at which each parameter and buffer is first used."""
    nodes = list(graph.program.graph.nodes)
    position = {node: number for number, node in enumerate(nodes)}
    stored = (InputKind.PARAMETER, InputKind.BUFFER)
    specs = {s.arg.name: s for s in graph.program.graph_signature.input_specs if s.kind in stored}
    found: dict[str, int] = {}
    for node in nodes:
        if node.op == "placeholder" and node.name in specs and node.users:
            target = str(specs[node.name].target)
            name = graph.aliases.get(target, target)
            found[name] = min(found.get(name, len(nodes)), min(position[u] for u in node.users))
    return found
