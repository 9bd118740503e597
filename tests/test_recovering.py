"""Recovery as `compress` does it: where it starts from, that it never ends worse, and that labels may be missing."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.data.datasets import ArrayDataset, Batches, DataSource
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.evaluation import Evaluation, evaluate
from prunus.pipeline.recovering import recover
from prunus.recovery.batchnorm import reestimate_batch_norm
from prunus.recovery.config import FinetuneConfig


def networks() -> tuple[nn.Module, nn.Module]:
    """A dense network, and one whose answers are near it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval()
        reestimate_batch_norm(dense, [(torch.randn(512, 6),)])
        near = copy.deepcopy(dense)
        with torch.no_grad():
            for p in near.parameters():
                p.add_(0.02 * torch.randn_like(p))
    return dense, near


def source(labels: int = 0, free: bool = False) -> DataSource:
    """Inputs with the dense network's own answers as labels, or with others."""
    dense, stream = networks()[0], torch.Generator().manual_seed(1)
    x = torch.randn(192, 6, generator=stream)
    with torch.no_grad():
        found = (dense(x).argmax(1) + labels) % 3
    parts = [ArrayDataset(x[i::3], found[i::3]) for i in range(3)]
    return DataSource("toy", *parts, 3, **({"loss_fn": DenseOutputs()} if free else {}))


def run(data: DataSource, near: nn.Module, config: FinetuneConfig) -> tuple[dict[str, Evaluation], list[str]]:
    judged: dict[str, Evaluation] = {}
    said: list[str] = []
    assert recover(near, networks()[0], data, config, Batches(data.train, 16), judged, [], say=said.append) is None
    return judged, said


SMALL = FinetuneConfig(epochs=0.5, batch_size=16, precision="fp32", channels_last=False)


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("lr", [1e-3, 0.3, 30.0])
def test_it_never_ends_worse_on_held_out_data_than_it_started(free: bool, lr: float) -> None:
    data, (dense, near) = source(free=free), networks()
    before = copy.deepcopy(near)
    judged, said = run(data, near, replace(SMALL, lr=lr, clip_grad_norm=1.0))
    start, end = judged["one_shot"], judged["recovered"]
    assert (end.accuracy, -end.loss) >= (start.accuracy, -start.loss)
    assert judged["recovered"] == evaluate(near, data.validation, loss_fn=data.loss_fn, dense=dense if free else None)
    stays = "network as it came, which stays" in said[-1]
    assert stays == (end in (start, judged["batch_norm"]))
    if lr == 30.0:
        assert stays
        x = data.test.normalise(data.test.inputs)
        if judged["one_shot"].loss <= judged["batch_norm"].loss:
            torch.testing.assert_close(near(x), before(x))


def test_without_labels_none_counts_and_one_seed_gives_one_network() -> None:
    weights: list[dict[str, Tensor]] = []
    for labels in (0, 1, 2):
        near = networks()[1]
        run(source(labels, free=True), near, replace(SMALL, epochs=1))
        weights.append(near.state_dict())
    assert all(torch.equal(w[name], v) for w in weights[1:] for name, v in weights[0].items())
    assert not all(torch.equal(v, networks()[1].state_dict()[name]) for name, v in weights[0].items())


def test_a_network_near_the_dense_one_takes_small_steps_where_no_rate_is_asked_for() -> None:
    rates: dict[Any, float] = {}
    for start in ("near", "far"):
        for lr in ("auto", 0.004):
            model = networks()[1]
            if start == "far":
                model[3].weight.data.neg_()  # type: ignore[index, union-attr, operator]
            said = run(source(), model, replace(SMALL, lr=lr))[1]
            told = [re.search(r"learning rate ([0-9.e-]+),", line) for line in said]
            rates[start, lr] = next((float(found[1]) for found in told if found), 0.0)
    assert rates["near", "auto"] == pytest.approx(SMALL.near().peak, rel=1e-2)
    assert rates["near", "auto"] < FinetuneConfig().peak
    assert rates["near", 0.004] == 0.004
    assert rates["far", "auto"] == rates["far", 0.004] == 0.0


def test_rates_follow_optimiser_and_epochs() -> None:
    assert FinetuneConfig().peak == 0.02
    assert FinetuneConfig(optimizer="adamw").peak == 0.001
    rates = [FinetuneConfig(epochs=e).near().peak for e in (0.01, 0.1, 1, 10)]
    assert rates == sorted(rates)
    assert rates[-1] == FinetuneConfig().peak
    assert FinetuneConfig(lr=0.3, blocks=1).near() == FinetuneConfig(lr=0.3, blocks=1)
    assert FinetuneConfig().block_weight == 0 < FinetuneConfig().near().block_weight


def steep() -> tuple[DataSource, nn.Module, nn.Module]:
    """A linear network on large inputs, on which the usual learning rate diverges; and one that is near it."""
    stream = torch.Generator().manual_seed(0)
    x = 60 * torch.randn(384, 4, generator=stream)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = nn.Linear(4, 2).eval()
    near = copy.deepcopy(dense)
    with torch.no_grad():
        near.weight.add_(0.1)
        y = dense(x)
    parts = [ArrayDataset(x[i::3], y[i::3]) for i in range(3)]
    return DataSource("toy", *parts, loss_fn=nn.MSELoss()), dense, near


def test_what_diverges_starts_again_with_smaller_steps() -> None:
    data, dense, near = steep()
    judged: dict[str, Evaluation] = {}
    said: list[str] = []
    config = replace(SMALL, epochs=8, distillation=0.0)
    assert recover(near, dense, data, config, Batches(data.train, 16), judged, [], say=said.append) is None
    assert any("again from the network as it came, learning rate 0.002" in line for line in said)
    assert judged["recovered"].loss < judged["one_shot"].loss
    data, dense, near = steep()
    before = copy.deepcopy(near)
    asked = replace(config, lr=0.02)
    failed = recover(near, dense, data, asked, Batches(data.train, 16), {}, [], say=said.append)
    assert failed is not None  # a rate that somebody gave is not changed
    assert torch.equal(near.weight, before.weight)
