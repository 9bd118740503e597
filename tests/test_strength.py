"""The strength of the complexity where nobody says how much goes: what it follows from, and what it doesn't."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.data.batches import as_batches
from prunus.learning.problem import Learning, Worth
from prunus.learning.strength import LOSS, RANGE, REACH, SHARE, Strength, prices, worth_of
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.methods.registry import METHODS
from prunus.pipeline.prune import Result, prune

STAGED = ("rbp", "sbp", "bmrs", "vib", "l0")
BRIEF = RecursiveBayesianPruning(epochs=15, weight_lr=1e-3)
Batches = list[tuple[Tensor, Tensor]]


def planted() -> tuple[nn.Sequential, Batches]:
    """Units 0 to 2 are of use, 3 to 11 answer to nothing that matters: noise, added to the outputs and taken off."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    with torch.no_grad():
        model[0].weight.mul_(0.3)
        model[0].weight[:3] = 3 * torch.eye(3, 6)
        model[2].weight.mul_(0.02)
        model[2].weight[:, :3] = 6 * torch.eye(3)
    x = torch.randn(2048, 6)
    y = x[:, :3].argmax(1)
    return model.eval(), [(x[i : i + 128], y[i : i + 128]) for i in range(0, 2048, 128)]


def learning(batches: Batches, factor: float = 1.0) -> Learning:
    return Learning(as_batches(batches), lambda out, y: factor * F.cross_entropy(out, y))


def pruned(method: RecursiveBayesianPruning, factor: float = 1.0, **options: object) -> Result:
    model, batches = planted()
    ways = {"data": batches, "loss_fn": lambda out, y: factor * F.cross_entropy(out, y), **options}
    return prune(model, batches[0][0], method=method, progress=False, **ways)  # type: ignore[arg-type]


def test_the_information_is_the_loss_without_the_units_less_the_loss_with_them() -> None:
    model, batches = planted()
    before = copy.deepcopy(model.state_dict())
    groups = prunus.trace(model, batches[0][0]).groups()
    worth = worth_of(model, groups, learning(batches))
    bias = model[2].bias.detach()  # what is left of the network without any of its units
    with torch.no_grad():
        seen = [
            float(F.cross_entropy(bias.expand(len(y), 3), y) - F.cross_entropy(model(x), y)) for x, y in batches[:4]
        ]
    wanted = sum(seen) / 4
    assert worth.information == pytest.approx(wanted, rel=1e-5)
    assert worth.information == pytest.approx(math.log(3), rel=0.3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    twice = [(torch.cat([x, x]), torch.cat([y, y])) for x, y in batches]
    assert worth_of(model, groups, learning(twice)).information == pytest.approx(worth.information, rel=1e-6)
    assert worth_of(model, groups, learning(batches, 4.0)).information == pytest.approx(4 * wanted, rel=1e-5)


@pytest.mark.parametrize("name", STAGED)
def test_all_units_together_weigh_a_share_of_the_information(name: str) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    groups = prunus.trace(model, torch.randn(2, 6)).groups()
    method = METHODS[name]()
    worth = Worth(2.0, 2.0 + 4.0)
    found = prices(worth, groups, method)  # type: ignore[arg-type]
    whole = [found[g.name] * float(method.posterior(g.units).complexity().detach()) for g in groups]  # type: ignore[attr-defined]
    assert sum(whole) == pytest.approx(SHARE * 2.0)
    assert whole[1] == pytest.approx(2 * whole[0])  # as the roots of 16 and 4
    with prunus.attach(model, groups, method.posterior) as gates:  # type: ignore[attr-defined]
        many = Strength.of(worth, groups, method, 10**6, 100)  # type: ignore[arg-type]
        assert float(many.penalty(gates, 0.5).detach()) == pytest.approx(0.5 * SHARE * 2.0, rel=1e-5)
        nats = float(sum(gates.posterior(g.name).complexity().detach() for g in groups))
        many.log_factor = -50.0  # however little is allowed: the evidence lower bound
        assert float(many.penalty(gates, 0.5).detach()) == pytest.approx(0.5e-6 * nats, rel=1e-5)
        few = Strength.of(worth, groups, method, 1, 100)  # type: ignore[arg-type]
        assert float(few.penalty(gates, 0.5).detach()) == pytest.approx(0.5 * nats, rel=1e-5)


def test_it_weighs_less_while_the_loss_is_higher_than_it_may_be() -> None:
    steps, method = 200, RecursiveBayesianPruning(warmup=0.0)
    groups = prunus.trace(planted()[0], torch.randn(2, 6)).groups()
    strength = Strength.of(Worth(1.0, 1.0), groups, method, 1000, steps)
    assert strength.tolerance == LOSS
    for _ in range(50):
        strength.see(0.1)
    assert strength.log_factor == 0  # never more than the price
    for _ in range(steps):
        strength.see(0.5)
    assert strength.log_factor == pytest.approx(-3 * RANGE, rel=0.1)
    for _ in range(2 * steps):
        strength.see(0.1)
    assert strength.log_factor < 0
    for _ in range(2 * steps):
        strength.see(0.1)
    assert strength.log_factor == 0
    noisy = Strength.of(Worth(1.0, 1.0), groups, method, 1000, steps)
    for step in range(steps):
        noisy.see(0.3 if step % 3 else 0.0)  # far more than the tolerance from step to step, and no higher in the end
    assert noisy.log_factor == 0
    later = Strength.of(Worth(1.0, 1.0, lowest=0.1), groups, method, 1000, steps)
    for _ in range(21):
        assert later.log_factor == 0  # one of so few steps says nothing
        later.see(0.2)  # against the stages before
    assert later.log_factor == pytest.approx(-3 * RANGE / steps)
    assert (later.step_size(0.01), later.step_size(0.5)) == (REACH / steps, 0.5)


def test_what_is_of_no_use_goes_without_a_strength() -> None:
    (kept,) = pruned(BRIEF).plan.kept.values()
    assert {0, 1, 2} <= set(kept)
    assert len(kept) <= 6
    (bound,) = pruned(RecursiveBayesianPruning(epochs=15, weight_lr=1e-3, complexity_per="unit")).plan.kept.values()
    assert len(kept) < len(bound)  # which hardly counts with many examples
    (more,) = pruned(RecursiveBayesianPruning(epochs=15, weight_lr=1e-3, beta=0.01)).plan.kept.values()
    assert len(more) > len(kept)  # beta is a multiple
    assert "without all of the units the loss is" in pruned(BRIEF).plan.explain()


def test_the_scale_of_the_loss_does_not_matter() -> None:
    once, eightfold = pruned(BRIEF), pruned(BRIEF, 8.0)
    assert once.plan.kept == eightfold.plan.kept


def test_targets_are_met_as_before() -> None:
    unit = RecursiveBayesianPruning(epochs=2, complexity_per="unit")
    default = RecursiveBayesianPruning(epochs=2)
    for target in ("macs<=50%", {"0": 5}):
        first, second = (pruned(m, target=target) for m in (unit, default))
        assert first.plan.kept == second.plan.kept
        assert all(torch.equal(v, second.model.state_dict()[k]) for k, v in first.model.state_dict().items())


def test_a_resumed_run_has_the_strength_of_an_unbroken_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x, y = torch.randn(256, 6), torch.randint(0, 3, (256,))
    batches = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 256, 64)]
    calls, stop = 0, True

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(outputs, targets) * (float("nan") if stop and calls == 40 else 1.0)

    def run(checkpoint: prunus.Checkpoint | None) -> Result:
        method = RecursiveBayesianPruning(epochs=5)
        return prune(model, x[:2], method=method, data=batches, loss_fn=loss, checkpoint=checkpoint, progress=False)

    with pytest.raises(prunus.errors.DataError, match=r"stage 2"):
        run(prunus.Checkpoint(tmp_path / "s.pt"))
    stop = False
    resumed, unbroken = run(prunus.Checkpoint(tmp_path / "s.pt", resume=True)), run(None)
    assert resumed.plan.kept == unbroken.plan.kept
    assert all(torch.equal(v, unbroken.model.state_dict()[k]) for k, v in resumed.model.state_dict().items())
