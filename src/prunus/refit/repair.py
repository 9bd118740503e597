"""`repair()`: layers behind removed units are refitted, in data-flow order, to what the dense network makes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.batches import as_batches
from prunus.errors import DataError
from prunus.plan.plan import Plan
from prunus.refit.layers import RepairConfig, refit_layers
from prunus.refit.lockstep import Lockstep
from prunus.refit.told import Refit
from prunus.runtime.arguments import examples_in
from prunus.runtime.copies import copied
from prunus.runtime.entry import entry
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision, to_device
from prunus.runtime.processes import model_device
from prunus.surgery.cut import check_fits
from prunus.surgery.rewrite import captured_freely


@dataclass(frozen=True)
class Repaired:
    """A dense network that loses less when the plan is applied to it.

    Attributes:
        model: a copy of the dense network with the refitted weights; to be given to `apply_` with the plan.
        refits: what was done, layer by layer, in the order in which it was done.
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
    """Refit the layers behind removed units so that they make what the dense network makes; no labels, no gradients.

    Args:
        model: the dense network that the plan was made for; not touched.
        plan: what goes.
        loader: batches as for `prune`; targets are not looked at.
        config: how.
        seed: which rows are looked at.
        progress: show a progress bar where there is a terminal.

    Returns:
        A repaired copy of the dense network, and what was won back in each layer.

    Raises:
        PlanError: the plan was made for another model.
        DataError: no batch.
        TraceError, SurgeryError: the model can't be run operation by operation.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> x = torch.randn(256, 8)
        >>> plan = prunus.Plan.from_kept(prunus.trace(net, x), {"0": range(12)})
        >>> repaired = prunus.repair(net, plan, [x])
        >>> [refit.layer for refit in repaired.refits]
        ['2']
        >>> smaller = prunus.apply_(repaired.model, plan, x)
    """
    check_fits(model, plan)
    config = config or RepairConfig()
    new = copied(model)
    batches = _first_examples(new, loader, config.examples)
    with eval_mode(new), torch.no_grad(), full_precision():
        graph = captured_freely(new, plan, batches[0])
        run = Lockstep(graph, plan, new)
        told = refit_layers(run, batches, plan, config, seed, progress)
    _write_(new, run)
    return Repaired(new, told)


def _first_examples(model: nn.Module, loader: Iterable[Any], wanted: int) -> list[Any]:
    batches, device, seen = [], model_device(model), 0
    for inputs, _ in as_batches(loader, model):
        batches.append(to_device(inputs, device))
        seen += examples_in(inputs)
        if seen >= wanted:
            break
    if not batches:
        raise DataError("loader", "there is no batch in it", "give batches of inputs")
    return batches


@torch.no_grad()
def _write_(model: nn.Module, run: Lockstep) -> None:
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for node, tensor in run.stored[1].items():
        old = run.stored[0][node]
        if isinstance(tensor, Tensor) and tensor is not old:
            target = str(node.target)
            held = tensors[target]
            there = run.masked._there(run.masked.places.get(target, ""), 0, held)
            held.copy_(tensor if there is None else torch.where(there, tensor, held))
