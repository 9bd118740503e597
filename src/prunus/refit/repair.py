"""`repair()`: layers behind removed units are refitted, in data-flow order, to what the dense network makes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus.graph.grouping import Graph
from prunus.plan.plan import Plan
from prunus.refit.calibration import Calibration, calibration
from prunus.refit.config import RepairConfig
from prunus.refit.experts import refit_experts_
from prunus.refit.layers import refit_layers
from prunus.refit.lockstep import Lockstep
from prunus.refit.told import Refit
from prunus.runtime.copies import copied
from prunus.runtime.entry import entry
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision
from prunus.surgery.cut import check_fits


@dataclass(frozen=True)
class Repaired:
    """A dense network that loses less when the plan is applied to it.

    Attributes:
        model: a copy of the dense network with the refitted weights; to be given to `apply_` with the plan.
        refits: what was done, layer by layer, in the order in which it was done.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(256, 8)
        >>> plan = prunus.Plan.from_kept(prunus.trace(net, x), {"0": range(12)})
        >>> done = prunus.repair(net, plan, [(x,)])
        >>> done.refits[0].after < done.refits[0].before, done.model[2].weight.shape
        (True, torch.Size([4, 16]))
    """

    model: nn.Module
    refits: tuple[Refit, ...] = field(default=())


@entry(unchanged=True)
def repair(
    model: nn.Module,
    plan: Plan,
    loader: Iterable[Any],
    *,
    config: RepairConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Repaired:
    """Refit layers behind removed units, and masked ones, to make what the dense network makes; no labels or gradients.

    Of a weight with a mask inside, each output is refitted by itself with the numbers that its mask leaves (SparseGPT's
    step, arXiv 2301.00774, exactly and for any mask): a factoring of its own for each, so the time grows as the cube of
    what stays of a row.

    Args:
        model: the dense network that the plan was made for; not touched.
        plan: what goes: units, numbers inside weights, or both.
        loader: batches as for `prune`; targets are not looked at.
        config: how.
        seed: which rows are looked at.
        progress: show a progress bar where there is a terminal.

    Returns:
        A repaired copy of the dense network, and what was won back in each layer.

    Raises:
        PlanError: the plan was made for another model, or holds patterns and no masks yet.
        DataError: no batch.
        TraceError, SurgeryError: the model can't be run operation by operation.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> x = torch.randn(256, 8)
        >>> plan = prunus.Plan.from_kept(prunus.trace(net, x), {"0": range(12)})
        >>> repaired = prunus.repair(net, plan, [(x,)])
        >>> [refit.layer for refit in repaired.refits]
        ['2']
        >>> smaller = prunus.apply_(repaired.model, plan, x)
    """
    check_fits(model, plan)
    config = config or RepairConfig()
    data = calibration(model, plan, loader, config, seed)
    return repaired_copy(model, plan, data, config, seed=seed, progress=progress)


def repaired_copy(
    model: nn.Module, plan: Plan, data: Calibration, config: RepairConfig, *, seed: int, progress: bool
) -> Repaired:
    """As `repair`, with what is needed at hand."""
    new = copied(model)
    first = refit_experts_(new, model, plan, data, config, seed=seed, progress=progress)
    given = _changed(model, new) if any(not r.reason and r.ridge for r in first) else {}
    run = Lockstep(data.graph, plan, model, given)
    with eval_mode(model), torch.no_grad(), full_precision(), run.in_format():
        told = refit_layers(run, data.batches, plan, config, seed, progress, shares=data.shares)
    _write_(new, run)
    return Repaired(new, (*first, *told))


def repair_part_(
    part: nn.Module,
    graph: Graph,
    plan: Plan,
    batches: Sequence[tuple[Any, Any]],
    config: RepairConfig,
    *,
    seed: int,
    stored_as: torch.dtype,
) -> tuple[Refit, ...]:
    """Repair a part of a network in place, which reads something else in the dense network than in the smaller one.

    Args:
        part: the dense part; afterwards to be cut by the plan.
        graph: the part captured with a free batch size.
        plan: what goes of it.
        batches: what it reads in the dense network, and in the smaller one.
        config: how; all batches are looked at.
        seed: of the rows.
        stored_as: format that new weights are rounded to.
    """
    run = Lockstep(graph, plan, part, others=[cut for _, cut in batches], stored_as=stored_as)
    with eval_mode(part), torch.no_grad(), full_precision(), run.in_format():
        told = refit_layers(run, [dense for dense, _ in batches], plan, config, seed, progress=False)
    _write_(part, run)
    return told


def _changed(model: nn.Module, new: nn.Module) -> dict[str, Tensor]:
    """Parameters that are others now."""
    old = dict(model.named_parameters())
    return {n: p.detach() for n, p in new.named_parameters() if not torch.equal(p, old[n])}


@torch.no_grad()
def _write_(model: nn.Module, run: Lockstep) -> None:
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for name, (new, stays) in run.replaced.items():
        held = tensors[name]
        held.copy_(new if stays is None else torch.where(stays, new, held))
