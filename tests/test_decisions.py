"""What decides what stays depends neither on the processor, nor on an autocast around it, nor on threads."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from masked import masked
from prunus.data.evaluation import mean_loss
from prunus.learning.fit import fit
from prunus.learning.measured import masked_loss, measured_scores
from prunus.measure.runtimes import cores
from prunus.methods.base import MaskMethod, Method, PosteriorMethod, RoutingCriterion, StagedMethod
from prunus.methods.criteria import Taylor
from prunus.methods.registry import METHODS, resolve
from prunus.plan.allocation import Allocation
from prunus.recovery.tune import tune_
from prunus.runtime.precision import ROUNDING, autocast, deciding, fastest, full_precision, lower
from zoo import untidy

CPU = torch.device("cpu")
OUTSIDE = {
    "bf16 helps": nullcontext,
    "under bf16 autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "fp32 products rounded": lambda: products("medium"),
    "two threads": lambda: cores(2),
}


@contextmanager
def products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten()]
    return untidy(nn.Sequential(*layers, nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 3))).eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 2, 6, 6, generator=generator), torch.arange(16) % 3) for _ in range(3)]


UNITS = [n for n, kind in METHODS.items() if n != "bn_scale" and not issubclass(kind, MaskMethod | RoutingCriterion)]
"""Methods of units; `bn_scale` wants a batch norm in every group."""


def quick(name: str) -> Method:
    settings: dict[str, Any] = {}
    if issubclass(METHODS[name], PosteriorMethod):
        settings = {"epochs": 2, "min_steps": 0}
    if issubclass(METHODS[name], StagedMethod):
        settings |= {"tune_epochs": 1}
    return METHODS[name](**settings) if settings else resolve(name)


def pin(monkeypatch: pytest.MonkeyPatch, helps: bool) -> None:
    for module in ("runtime.precision", "recovery.placement"):
        monkeypatch.setattr(importlib.import_module(f"prunus.{module}"), "bf16_helps", lambda _: helps)


@pytest.mark.parametrize("name", UNITS)
def test_a_plan_is_the_same_on_every_processor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"method": quick(name), "data": batches(), "loss_fn": F.cross_entropy, "progress": False}
    settings["target"] = "macs<=50%"
    pin(monkeypatch, False)
    plain = prunus.prune(net(), batches()[0][0], **settings)
    pin(monkeypatch, True)
    other = prunus.prune(net(), batches()[0][0], **settings)
    assert other.plan.kept == plain.plan.kept
    for group, score in plain.scores.values.items():
        assert torch.equal(other.scores.values[group], score)


@pytest.mark.parametrize("outside", OUTSIDE)
def test_measured_losses_are_those_of_fp32(outside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = net(), batches()
    groups = prunus.trace(model, data[0][0]).groups()
    scores = fit(model, groups, Taylor(), data, F.cross_entropy, num_data=48)
    kept = {g.name: range(0, g.units, 2) for g in groups}
    measured = measured_scores(model, groups, scores.values, data, F.cross_entropy)
    loss, mean = masked_loss(model, groups, kept, data, F.cross_entropy), mean_loss(model, data, F.cross_entropy)
    pin(monkeypatch, True)
    with OUTSIDE[outside]():
        again = fit(model, groups, Taylor(), data, F.cross_entropy, num_data=48)
        other = measured_scores(model, groups, scores.values, data, F.cross_entropy)
        assert masked_loss(model, groups, kept, data, F.cross_entropy) == pytest.approx(loss, rel=1e-6)
        assert mean_loss(model, data, F.cross_entropy) == pytest.approx(mean, rel=1e-6)
    for group in groups:
        torch.testing.assert_close(again.values[group.name], scores.values[group.name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(other[group.name], measured[group.name], rtol=1e-3, atol=float(ROUNDING * loss))


def test_threads_do_not_change_a_plan() -> None:
    def plan() -> dict[str, tuple[int, ...]]:
        return prunus.prune(
            net(), batches()[0][0], method="taylor", target="macs<=50%", data=batches(), loss_fn=F.cross_entropy,
            allocation=Allocation(scope="measured"), progress=False,
        ).plan.kept  # fmt: skip

    with cores(1):
        one = plan()
    with cores(2):
        assert plan() == one


def test_useless_units_cost_nothing_rather_than_a_rounding() -> None:
    """Sums in another order differ by some roundings; they don't make one useless layer dearer than the other."""
    model, (x, _) = net(), batches()[0]
    with torch.no_grad():
        model[6].weight.zero_()  # the convolutions are heard no more
        data = [(x, model(x))]
    groups = prunus.trace(model, data[0][0]).groups()
    scores = {g.name: torch.arange(g.units, 0.0, -1.0) for g in groups}
    calls = itertools.count()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 + F.mse_loss(outputs, targets)) * (1 + ROUNDING / 4 * (-1) ** next(calls))

    found = measured_scores(model, groups, scores, data, loss)
    heard = groups[-1].name
    assert float(found[heard].max()) > ROUNDING
    assert max(float(found[g.name].max()) for g in groups[:-1]) < 1e-9


def test_a_loss_is_lower_only_by_more_than_rounding() -> None:
    assert lower(0.9, than=1.0)
    assert not lower(1.0 - ROUNDING / 2, than=1.0)
    assert not lower(1.0, than=1.0)
    assert lower(-1.1, than=-1.0)
    assert not lower(-1.0 - ROUNDING / 2, than=-1.0)


def test_auto_means_bf16_only_where_nothing_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, True)
    assert fastest(CPU, "auto") == "bf16"
    assert deciding("auto") == "fp32"
    assert deciding("bf16") == fastest(CPU, "bf16") == "bf16"
    pin(monkeypatch, False)
    assert fastest(CPU, "auto") == "fp32"


def test_fp32_is_fp32_under_an_autocast() -> None:
    x = torch.randn(2, 2)
    with torch.autocast("cpu", torch.bfloat16), autocast(CPU, "fp32"):
        assert (x @ x).dtype == torch.float32
    with autocast(CPU, "bf16"):
        assert (x @ x).dtype == torch.bfloat16


def test_rounded_products_are_put_back_as_they_were() -> None:
    with products("medium"):
        set_to = torch.backends.mkldnn.matmul.fp32_precision
        assert set_to == "bf16"
        with full_precision():
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == set_to
        assert torch.get_float32_matmul_precision() == "medium"


def test_weights_between_stages_and_masks_are_learned_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    def learned() -> list[Tensor]:
        model = net()
        tune_(model, list(model.parameters()), batches(), F.cross_entropy, epochs=1, lr=1e-3)
        method = prunus.DynamicProbabilisticPruning(pattern="4:8", epochs=1, tune_epochs=0)
        found = masked(net(), ["6"], method, batches(), F.cross_entropy)
        return [*model.parameters(), found.logits["6"], *found.model.parameters()]

    pin(monkeypatch, False)
    plain = learned()
    pin(monkeypatch, True)
    assert all(torch.equal(a, b) for a, b in zip(plain, learned(), strict=True))


def test_every_rank_draws_its_own_dropout_between_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    def tuned() -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(72, 3))
        tune_(model, list(model.parameters()), batches(), F.cross_entropy, epochs=1, lr=1e-2)
        return model[2].weight.detach()

    first = tuned()
    assert torch.equal(tuned(), first)
    monkeypatch.setattr(importlib.import_module("prunus.runtime.seeds"), "rank", lambda: 1)
    assert not torch.equal(tuned(), first)
