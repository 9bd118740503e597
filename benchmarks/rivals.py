"""Torch-Pruning 1.6.1 beside us: each of its importances at its best, cut to the same share of the cost.

Group norm, group Taylor and the scale of batch norms as its documentation sets them up, and isomorphic pruning by group
norm. Each prunes globally and layer by layer, in one step whose ratio is found by halving; the network that loses less
on the validation split counts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from limits import Limit
from prunus.data.datasets import DataSource
from prunus.data.evaluation import evaluate
from prunus.errors import BudgetError


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


def cut_by_rival(
    label: str, dense: nn.Module, data: DataSource, batches: Iterable[Any], limit: Limit, ignored: Sequence[str]
) -> nn.Module:
    """The network that a rival makes of the dense one: the largest that it finds within the limit.

    Args:
        label: of `RIVALS`.
        dense: not touched.
        data: example inputs, loss, and the validation split that the better of its ways is chosen on.
        batches: that gradients are summed over.
        limit: of the cost.
        ignored: layers whose outputs stay; the last linear layer does anyway.
    """
    importance, ways = RIVALS[label]()
    given = list(batches)
    found = [
        limit.largest(lambda gone, way=way: _pruned(importance, way, dense, data, given, gone, ignored))  # type: ignore[misc]
        for way in ways
    ]
    made = [model for model in found if model is not None]
    if not made:
        raise BudgetError(f"budget {limit.text!r}", f"{label} finds no ratio that meets it", "raise the budget")
    losses = [evaluate(model, data.validation, loss_fn=data.loss_fn).loss for model in made]
    return made[losses.index(min(losses))]


def _pruned(
    importance: Any,
    way: dict[str, bool],
    dense: nn.Module,
    data: DataSource,
    batches: list[Any],
    ratio: float,
    ignored: Sequence[str],
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
