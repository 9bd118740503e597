"""Gates learned by two CPU processes are equal on both, and a NaN on one rank is refused by both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import two_processes, write_down
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.data.datasets import ArrayDataset, Batches
from prunus.data.dense_outputs import DenseOutputs
from prunus.errors import DataError
from prunus.learning.fit import fit
from prunus.methods.criteria import Fisher
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.dpp import DynamicProbabilisticPruning
from prunus.runtime.processes import accelerator

pytestmark = pytest.mark.dist


def masked(model: nn.Module, layers: list[str], method: DynamicProbabilisticPruning, data: Any) -> prunus.Result:
    x, target = torch.ones(2, 1, 6, 6), dict.fromkeys(layers, method.pattern)
    return prunus.prune(
        model, x, method=method, target=target, data=data, loss_fn=F.cross_entropy, progress=False
    )  # fmt: skip


def toy() -> tuple[nn.Module, ArrayDataset]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, ArrayDataset(torch.randn(64, 1, 6, 6), torch.arange(64) % 3)


def learned(rank: int, world: int) -> dict[str, Any]:
    model, data = toy()
    groups = prunus.trace(model, torch.randn(2, 1, 6, 6)).groups()
    batches = Batches(data, 16, shuffle=True, rank=rank, world=world)
    found = fit(model, groups, DirichletPruning(min_steps=0), batches, F.cross_entropy, num_data=64, precision="fp32")
    fisher = fit(model, groups, Fisher(), batches, F.cross_entropy, num_data=64, precision="fp32")
    free = fit(model, groups, DirichletPruning(min_steps=0), batches, DenseOutputs("values"), num_data=64)
    drawn = fit(model, groups, Fisher(), batches, DenseOutputs("values"), num_data=64)
    poisoned = [(x.fill_(float("nan")) if rank == world - 1 else x, y) for x, y in batches]
    refused = ""
    try:
        fit(model, groups, DirichletPruning(min_steps=0), poisoned, F.cross_entropy, num_data=64)
    except DataError as error:
        refused = error.where
    method = DynamicProbabilisticPruning(pattern="weight 25%", epochs=1, tune_epochs=1, best_of=2)
    inside = masked(model, ["0", "3"], method, batches)
    by_filter = replace(method, pattern="filter 50%", prior=0.0, noise_scale=(1.0, 1.0))
    filters = masked(model, ["0", "3"], by_filter, batches)
    refused_masks = ""
    try:
        masked(model, ["3"], method, poisoned)
    except DataError as error:
        refused_masks = error.where
    return {
        "masks": {n: m.tolist() for n, m in inside.masked.masks.items()},
        "weights": {n: p.tolist() for n, p in inside.model.named_parameters()},
        "filters": {n: m.tolist() for n, m in filters.masked.masks.items()},
        "fewer_weights": {n: p.tolist() for n, p in filters.model.named_parameters()},
        "refused_masks": refused_masks,
        "dirichlet": {n: v.tolist() for n, v in found.values.items()},
        "free": {n: v.tolist() for n, v in (free.values | {f"{n}, drawn": v for n, v in drawn.values.items()}).items()},
        "fisher": {n: v.tolist() for n, v in fisher.values.items()},
        "refused": refused,
    }


def test_two_processes_hold_the_same_gates(tmp_path: Path) -> None:
    first, second = two_processes(__file__, tmp_path)
    assert first["dirichlet"] == second["dirichlet"]
    assert first["free"] == second["free"]
    assert first["refused"] == second["refused"] == "epoch 0, step 0"
    assert first["masks"] == second["masks"]
    assert first["weights"] == second["weights"]
    assert first["filters"] == second["filters"]
    assert first["fewer_weights"] == second["fewer_weights"]
    assert len(first["fewer_weights"]["0.weight"]) == 3
    assert first["refused_masks"] == second["refused_masks"] == "epoch 0, step 0"
    alone = learned(0, 1)
    for name, values in alone["fisher"].items():  # no noise: two processes see what one sees
        torch.testing.assert_close(torch.tensor(first["fisher"][name]), torch.tensor(values), rtol=1e-4, atol=1e-7)


if __name__ == "__main__":
    write_down(learned)
