"""Optimiser state carried over: training goes on as masked training of the dense model would."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import PlanError
from zeroed import zeroed_

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 3))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 2, 4, 4, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x, y = batch(seed)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_next_steps_are_those_of_masked_training(kind: str) -> None:
    dense = net()
    optimizer = OPTIMIZERS[kind](dense.parameters())
    for seed in range(5):
        step(dense, optimizer, seed)
    graph = prunus.trace(dense, batch(0)[0])
    kept = {g.name: list(range(0, g.units, 2)) for g in graph.groups()}
    plan = prunus.Plan.from_kept(graph, kept)
    pruned = prunus.apply_(copy.deepcopy(dense), plan, batch(0)[0])
    carried = prunus.carry_optimizer(optimizer, dense, pruned, plan)
    assert type(carried) is type(optimizer)
    # Masked training: removed units are zero before every step, so that kept ones see what the smaller network sees.
    for seed in range(5, 9):
        step(zeroed_(dense, graph, kept), optimizer, seed)
        step(pruned, carried, seed)
    x = batch(99)[0]
    assert torch.allclose(pruned(x), zeroed_(dense, graph, kept)(x), atol=1e-4)


def test_groups_options_and_what_is_left_out_stay() -> None:
    dense = net()
    first, last = dense[0], dense[5]
    optimizer = torch.optim.SGD(
        [{"params": first.parameters(), "lr": 0.3}, {"params": [last.weight], "weight_decay": 0.1}],
        lr=0.05,
        momentum=0.5,
    )
    step(dense, optimizer, 0)
    graph = prunus.trace(dense, batch(0)[0])
    plan = prunus.Plan.from_kept(graph, {"0": [1, 2], "3": [0, 5, 7]})
    pruned = prunus.apply_(copy.deepcopy(dense), plan, batch(0)[0])
    carried = prunus.carry_optimizer(optimizer, dense, pruned, plan)
    assert [g["lr"] for g in carried.param_groups] == [0.3, 0.05]
    assert [g["weight_decay"] for g in carried.param_groups] == [0, 0.1]
    assert [p is q for p, q in zip(carried.param_groups[0]["params"], pruned[0].parameters(), strict=True)] == [
        True
    ] * 2
    momentum = carried.state[pruned[5].weight]["momentum_buffer"]
    assert torch.equal(momentum, optimizer.state[last.weight]["momentum_buffer"][:, [0, 5, 7]])
    assert set(carried.state) == {*pruned[0].parameters(), pruned[5].weight}
    with pytest.raises(PlanError, match="not in both models"):
        prunus.carry_optimizer(torch.optim.SGD(net().parameters(), lr=0.1), dense, pruned, plan)
