"""Torch-Pruning 1.6.1 beside us: each of its importances at its best, cut to the same share of the MACs.

Group norm, group Taylor and the scale of batch norms as its documentation sets them up, and isomorphic pruning by group
norm. Each prunes globally and layer by layer, in one step whose ratio is found by halving; the network that loses less
on the validation split counts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

import prunus
from prunus.data.datasets import DataSource
from prunus.data.evaluation import evaluate

HALVINGS = 12


def torch_pruning() -> Any:
    """The package."""
    import torch_pruning

    return torch_pruning


RIVALS: dict[str, Callable[[], tuple[Any, list[dict[str, bool]]]]] = {
    "TP group norm": lambda: (
        torch_pruning().importance.GroupMagnitudeImportance(p=2),
        [{"global_pruning": False}, {"global_pruning": True}],
    ),
    "TP group Taylor": lambda: (
        torch_pruning().importance.GroupTaylorImportance(),
        [{"global_pruning": False}, {"global_pruning": True}],
    ),
    "TP BN scale": lambda: (
        torch_pruning().importance.BNScaleImportance(),
        [{"global_pruning": False}, {"global_pruning": True}],
    ),
    "TP isomorphic norm": lambda: (
        torch_pruning().importance.GroupMagnitudeImportance(p=2),
        [{"global_pruning": True, "isomorphic": True}],
    ),
}


def macs_of(model: nn.Module, inputs: Any) -> int:
    """Of one example, counted as ours are."""
    graph = prunus.trace(model, inputs)
    return int(prunus.Plan.from_kept(graph, {}).before.macs)


def cut_by_rival(
    label: str, dense: nn.Module, data: DataSource, batches: Iterable[Any], share: float, ignored: Iterable[str]
) -> nn.Module:
    """The network that a rival makes of the dense one: the largest that it finds of at most this share of the MACs.

    Args:
        label: of `RIVALS`.
        dense: not touched.
        data: example inputs, loss, and the validation split that the better of its ways is chosen on.
        batches: that gradients are summed over.
        share: of the MACs.
        ignored: layers whose outputs stay; the last linear layer does anyway.
    """
    importance, ways = RIVALS[label]()
    found = [made for way in ways if (made := _largest(importance, way, dense, data, list(batches), share, ignored))]
    if not found:
        raise ValueError(f"{label}: no ratio meets {share:.0%} of the MACs")
    losses = [evaluate(model, data.validation, loss_fn=data.loss_fn).loss for model in found]
    return found[losses.index(min(losses))]


def _largest(
    importance: Any,
    way: dict[str, bool],
    dense: nn.Module,
    data: DataSource,
    batches: list[Any],
    share: float,
    ignored: Iterable[str],
) -> nn.Module | None:
    low, high, best = 0.0, 1.0, None
    most = share * macs_of(dense, data.example_inputs)
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        model = _pruned(importance, way, dense, data, batches, ratio, ignored)
        if macs_of(model, data.example_inputs) <= most:
            best, high = model, ratio
        else:
            low = ratio
    return best


def _pruned(
    importance: Any,
    way: dict[str, bool],
    dense: nn.Module,
    data: DataSource,
    batches: list[Any],
    ratio: float,
    ignored: Iterable[str],
) -> nn.Module:
    model = copy.deepcopy(dense).eval()
    layers = dict(model.named_modules())
    last = [m for m in layers.values() if isinstance(m, nn.Linear)][-1:]
    pruner = torch_pruning().pruner.BasePruner(
        model,
        data.example_inputs,
        importance=importance,
        pruning_ratio=ratio,
        ignored_layers=[*(layers[name] for name in ignored), *last],
        **way,
    )
    if "Taylor" in type(importance).__name__:
        for inputs, targets in batches:
            data.loss_fn(model(inputs), targets).backward()
    with torch.no_grad():
        pruner.step()
    model.zero_grad(set_to_none=True)
    return model
