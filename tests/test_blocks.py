"""Distillation of blocks: which are compared, by what, and that nothing of it stays."""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from prunus.data.datasets import ArrayDataset, DataSource
from prunus.data.dense_outputs import DenseOutputs
from prunus.errors import DataError
from prunus.recovery.blocks import BlockOutputs, block_distance, common_blocks
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.finetuning import finetune


class Block(nn.Module):
    """A residual block of `inner` units."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x).relu())


def network(inner: int, width: int = 6, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stage = nn.Sequential(Block(width, inner), Block(width, inner))
        return nn.Sequential(nn.Linear(4, width), stage, nn.Linear(width, 3)).eval()


X = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))


def test_blocks_that_answer_in_the_same_shape_are_compared_once() -> None:
    dense = network(8)
    assert common_blocks(network(5), dense, lambda m: m(X[:2])) == ["1.0", "1.1"]  # and not the stage, which is "1.1"
    assert common_blocks(network(8, width=5), dense, lambda m: m(X[:2])) == []
    assert common_blocks(nn.Sequential(nn.Linear(4, 3)), dense, lambda m: m(X[:2])) == []
    shared = network(5)
    shared[1][1] = shared[1][0]  # type: ignore[index, operator]
    assert common_blocks(shared, dense, lambda m: m(X[:2])) == ["1"]  # one block that is called twice


def test_the_distance_is_relative_to_the_teachers_variance() -> None:
    goal, noise = torch.randn(32, 6) * 3 + 1, torch.randn(32, 6)
    by_hand = (noise.square().mean() / goal.var() + 0) / 2
    found = block_distance({"a": [goal + noise], "b": [goal]}, {"a": [goal], "b": [goal]})
    torch.testing.assert_close(found, by_hand)
    scaled = block_distance({"a": [7 * (goal + noise)]}, {"a": [7 * goal]})
    torch.testing.assert_close(scaled, 2 * by_hand)


def source(free: bool = False) -> DataSource:
    parts = [ArrayDataset(X, torch.arange(len(X)) % 3) for _ in range(3)]
    return DataSource("toy", *parts, 3, **({"loss_fn": DenseOutputs()} if free else {}))


CONFIG = FinetuneConfig(epochs=20, batch_size=16, lr=0.01, precision="fp32", channels_last=False, patience=None)


@pytest.mark.parametrize("free", [False, True])
def test_blocks_come_nearer_and_no_hook_stays(free: bool) -> None:
    dense, distances = network(8), {}
    for weight in (0.0, 30.0):
        student = network(5, seed=2)
        finetune(student, source(free), replace(CONFIG, blocks=weight), teacher=copy.deepcopy(dense), progress=False)
        names = common_blocks(student, dense, lambda m: m(X))
        with torch.no_grad(), BlockOutputs(student, names) as ours, BlockOutputs(dense, names) as goal:
            student(X)
            dense(X)
        distances[weight] = float(block_distance(ours.taken(), goal.taken()))
        ours.remove()
        goal.remove()
        assert not any(m._forward_hooks for net in (student, dense) for m in net.modules())
    assert distances[30.0] < 0.8 * distances[0.0]


def test_where_there_is_no_block_nothing_is_added() -> None:
    results = []
    for weight in (0.0, 10.0):
        student = nn.Sequential(nn.Linear(4, 3))
        nn.init.eye_(student[0].weight)
        nn.init.zeros_(student[0].bias)
        config = replace(CONFIG, epochs=1, blocks=weight)
        finetune(student, source(), config, teacher=network(8), progress=False)
        results.append(student.state_dict())
    assert all(torch.equal(v, results[1][name]) for name, v in results[0].items())


def test_a_block_that_answers_a_constant_gives_a_finite_distance() -> None:
    ours = {"a": [torch.full((2, 3), 0.5)]}
    assert float(block_distance(ours, {"a": [torch.zeros(2, 3)]})) == 0.25
    assert float(block_distance(ours, {"a": [torch.full((2, 3), 2.0)]})) == 1.5**2 / 4


def test_nobody_is_watched_where_a_recovery_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused leaves no hooks on the given networks."""
    finetuning = importlib.import_module("prunus.recovery.finetuning")

    def refused(*_: object) -> None:
        raise DataError("data", "no", "none")

    x = torch.randn(8, 8)
    part = ArrayDataset(x, torch.arange(8) % 2)
    for name in ("_batches", "_start"):
        nets = [nn.Sequential(Block(8, inner), nn.Linear(8, 2)) for inner in (4, 6)]
        config = FinetuneConfig(epochs=1, batch_size=4, blocks=1.0)
        with monkeypatch.context() as patched:
            patched.setattr(finetuning._Recovery, name, refused)
            with pytest.raises(DataError):
                finetune(nets[0], DataSource("toy", part, part), config, teacher=nets[1], progress=False)
        assert not any(m._forward_hooks for net in nets for m in net.modules())
