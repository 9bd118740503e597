"""How the package's own methods are asked for a row of a comparison, each with the same examples and steps.

Criteria and Dirichlet pruning score the units of frozen weights; `repair` is `prune`'s own. The methods in stages (RBP,
SBP, VIB, L0, BMRS) and DPP have no repair inside of them. Without repair they run as their papers have it: the weights
train along with the noise, or the masks, and are tuned after it. With repair the weights are frozen, so that the method
only says which units go, and what is left is repaired as for everyone. Methods of several stages share the steps out
among these. DPP takes no budget: it is asked for whole filters, the largest uniform share that meets it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import prunus
from given import brief
from options import smoking
from prunus.data.datasets import Batches, DataSource
from prunus.methods.base import MaskMethod, Method, PosteriorMethod, StagedMethod
from prunus.methods.registry import resolve
from prunus.pipeline.planning import prunable_groups
from prunus.pipeline.prune import Result
from prunus.plan.allocation import Allocation

TUNED = 1
"""Epochs that DPP's fixed masks are tuned for, as the methods in stages are."""


def cut_by_ours(
    name: str,
    dense: nn.Module,
    data: DataSource,
    batches: Batches,
    budget: str,
    ignored: Sequence[str],
    *,
    repair: bool,
    steps: int,
    seed: int,
) -> tuple[nn.Module, prunus.Plan, float]:
    """The smaller network, its plan, and how far it was off the masked one.

    Args:
        name: of the method.
        dense: not touched.
        data: example inputs and loss.
        batches: what is looked at.
        budget: such as `macs<=50%`.
        ignored: layers whose outputs stay.
        repair: see the module's text.
        steps: of methods that learn.
        seed: for everything random.
    """
    method = resolve(name)
    target: Any = budget
    if isinstance(method, MaskMethod):
        target, method = filters_within(dense, data, budget, ignored), _drawn(method, len(batches), steps, repair)
    elif isinstance(method, StagedMethod):
        method = _staged(method, len(prunable(dense, data, ignored)), steps, repair)
    elif isinstance(method, PosteriorMethod):
        method = brief(replace(method, min_steps=steps))
    result = prunus.prune(
        dense,
        data.example_inputs,
        method=method,
        target=target,
        data=batches,
        loss_fn=data.loss_fn,
        ignored_layers=() if isinstance(method, MaskMethod) else ignored,
        allocation=None if isinstance(method, MaskMethod) else Allocation(round_to=1),
        repair=repair,
        seed=seed,
        progress=False,
    )
    if repair and trains_alone(method):
        return _repaired(dense, data, result, batches, seed), result.plan, result.verification.max_error
    return result.model, result.plan, result.verification.max_error


def trains_alone(method: Method) -> bool:
    """Whether `prune` leaves repair out for such methods."""
    return isinstance(method, StagedMethod | MaskMethod)


def prunable(dense: nn.Module, data: DataSource, ignored: Sequence[str]) -> list[Any]:
    """Groups that may lose units."""
    return prunable_groups(prunus.trace(dense, data.example_inputs), dense, ignored)


def filters_within(dense: nn.Module, data: DataSource, budget: str, ignored: Sequence[str]) -> dict[str, str]:
    """Of every prunable group's first layer `filter k/n`, the largest uniform share within the budget."""
    graph, groups = prunus.trace(dense, data.example_inputs), prunable(dense, data, ignored)
    alike = {g.name: torch.ones(g.units) for g in groups}
    uniform = Allocation("uniform", round_to=1)
    counts = prunus.allocate(graph, groups, alike, budget=prunus.Budget.parse(budget), allocation=uniform)
    return {g.name: f"filter {counts[g.name]}/{g.units}" for g in groups}


def _staged(method: StagedMethod, groups: int, steps: int, repair: bool) -> StagedMethod:
    each = steps if method.simultaneous else math.ceil(steps / groups)
    method = replace(method, epochs=1, min_steps=2 if smoking() else each)
    return replace(method, train_weights="none", tune_epochs=0) if repair else method


def _drawn(method: MaskMethod, batches: int, steps: int, repair: bool) -> MaskMethod:
    epochs = 1 if smoking() else math.ceil(steps / batches)
    found: MaskMethod = replace(method, epochs=epochs, tune_epochs=TUNED, train_weights=not repair)  # type: ignore[type-var]
    return found


def _repaired(dense: nn.Module, data: DataSource, result: Result, batches: Batches, seed: int) -> nn.Module:
    done = prunus.repair(dense, result.plan, batches, seed=seed, progress=False)
    return prunus.apply_(done.model, result.plan, data.example_inputs)
