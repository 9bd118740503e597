"""Selected inputs: removed features are never read, whatever carries the result, and weights don't judge them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError
from prunus.formats.artifact import load, save
from prunus.methods.criteria import L1, Taylor
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.pipeline.prune import Result, prune

FEATURES, USED = 10, (1, 4, 7)


def network() -> nn.Module:
    return nn.Sequential(prunus.SelectInputs(FEATURES), nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 2))


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2048, FEATURES, generator=generator)
    y = (x[:, 1] * x[:, 4] + x[:, 7] > 0).long()
    return list(zip(x.split(64), y.split(64), strict=True))


def trained() -> nn.Module:
    torch.manual_seed(0)
    model, batches = network(), data()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(20):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def pruned(model: nn.Module) -> Result:
    counts = {"0": len(USED), "1": 16}
    return prune(model, data()[0][0], method=Taylor(), data=data(), loss_fn=F.cross_entropy, target=counts)


def kept(result: Result) -> tuple[int, ...]:
    return next(tuple(g.kept) for g in result.plan.groups if g.name == "0")


def test_the_features_that_matter_stay_and_the_others_are_not_read() -> None:
    model = trained()
    result = pruned(model)
    assert kept(result) == USED
    smaller = result.model
    assert smaller[0].index.tolist() == list(USED)  # type: ignore[index, union-attr, operator]
    assert smaller[1].weight.shape == (16, 3)  # type: ignore[index, union-attr]
    x = data()[0][0]
    changed = x.clone()
    changed[:, [i for i in range(FEATURES) if i not in USED]] = torch.nan
    assert torch.equal(smaller(changed), smaller(x))
    assert result.plan.before.macs - result.plan.after.macs == 16 * (FEATURES - len(USED))


def test_the_selection_goes_into_the_artifact_and_comes_back(tmp_path: Path) -> None:
    result = pruned(trained())
    x = data()[0][0]
    save(tmp_path / "a", result.model, result.plan, example_inputs=x)
    assert torch.equal(load(tmp_path / "a", network)(x), result.model(x))
    assert torch.allclose(load(tmp_path / "a")(x), result.model(x), atol=1e-6)


def test_noise_removes_the_features_that_carry_nothing() -> None:
    method = RecursiveBayesianPruning(epochs=15, beta=10.0, lr=0.03, tune_epochs=1)
    result = prune(trained(), data()[0][0], method=method, data=data(), loss_fn=F.cross_entropy)
    assert [s.groups for s in result.stages] == [("0",), ("1",)]
    assert kept(result) == USED


def test_weights_do_not_judge_inputs() -> None:
    with pytest.raises(ConfigError, match=r"(?s)'0\.index'.*selected inputs"):
        prune(network(), data()[0][0], method=L1(), target="macs<=50%")


def test_at_least_one_feature() -> None:
    with pytest.raises(ConfigError, match="features=0"):
        prunus.SelectInputs(0)
