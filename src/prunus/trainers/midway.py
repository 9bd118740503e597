"""A cut in the middle of a training: model and optimiser stay the objects that they are, and go on smaller."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunus.errors import ConfigError, SurgeryError
from prunus.methods.base import MaskMethod
from prunus.methods.registry import resolve
from prunus.pipeline.prune import Result, prune
from prunus.proof.apply import apply_
from prunus.runtime.entry import entry
from prunus.surgery.optimizer import carry_optimizer


@entry()
def cut_midway_(model: nn.Module, optimizer: torch.optim.Optimizer, example_inputs: Any, **settings: Any) -> Result:
    """Prune a model that is being trained. It is cut itself, and the optimiser's momenta and moments with it.

    A schedule of learning rates that holds the optimiser goes on: its groups stay, their parameters are others.

    Args:
        model: of a class of its own that survives the cut; in training or not, on one process.
        optimizer: over its parameters.
        example_inputs: as for `prune`.
        settings: of `prune`: `target`, `data`, `method`, `loss_fn`, ... ; not of methods of weights, whose zeros a
            training would fill.

    Returns:
        What `prune` made; its `model` is a copy, with the same weights as the given one has afterwards.

    Raises:
        ConfigError: a method of weights, or a model that several processes share.
        SurgeryError: the class's own code does not survive the cut; model and optimiser are as they were.
        PruneError: what `prune` and `carry_optimizer` refuse; model and optimiser are as they were.

    Example:
        >>> from prunus.trainers import cut_midway_
        >>> net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 8)
        >>> optimizer = torch.optim.Adam(net.parameters())
        >>> for step in range(4):
        ...     net(x).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     if step == 1:
        ...         result = cut_midway_(net, optimizer, x, method="l1", target="macs<=50%")
        >>> net[0], optimizer.state[net[0].weight]["exp_avg"].shape, int(optimizer.state[net[0].weight]["step"])
        (Linear(in_features=8, out_features=8, bias=True), torch.Size([8, 8]), 4)
    """
    if isinstance(resolve(settings.get("method", "dirichlet")), MaskMethod):
        what = "it sets weights to zero, and the training that goes on would fill them again"
        raise ConfigError("method", what, "use a method of units, or prune when the training is over")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        what = "several processes share it, whose buckets hold the parameters of before"
        raise ConfigError("model", what, "train on one process up to the cut, or cut between two trainings")
    result = prune(model, example_inputs, **{"progress": False, **settings})
    if result.verification.rewritten:
        what = "its own code does not survive the cut, and a training can't change to another module"
        raise SurgeryError(f"model {type(model).__name__}", what, "give allow=('own_class',)")
    carried = carry_optimizer(optimizer, model, result.model, result.plan)
    training = {name: module.training for name, module in model.named_modules()}
    apply_(model, result.plan, example_inputs, rewrite_graph=False)
    model.load_state_dict(result.model.state_dict())  # repaired
    for name, module in model.named_modules():
        module.training = training.get(name, model.training)
    _adopt_(optimizer, carried, result.model, model)
    return result


def _adopt_(
    optimizer: torch.optim.Optimizer, carried: torch.optim.Optimizer, pruned: nn.Module, own: nn.Module
) -> None:
    """Groups and state of the carried optimiser over a copy, for the same parameters of the model itself."""
    mine = dict(own.named_parameters())
    now: dict[Any, nn.Parameter] = {p: mine[name] for name, p in pruned.named_parameters()}
    for group, smaller in zip(optimizer.param_groups, carried.param_groups, strict=True):
        group["params"] = [now[p] for p in smaller["params"]]
    optimizer.state.clear()
    optimizer.state.update({now[p]: state for p, state in carried.state.items()})
