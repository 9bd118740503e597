"""Masks inside weights: what they leave is refitted, nothing else is there, and a full mask changes nothing."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import PlanError
from prunus.methods.dpp import DynamicProbabilisticPruning as DPP
from prunus.proof.apply import apply_and_verify_
from prunus.proof.weightmasks import mask_of, plan_patterns, with_masks
from prunus.refit import RepairConfig, Repaired, repair, supports
from prunus.refit.supports import solved_within
from prunus.runtime.copies import copied

PATTERNS = ["weight 25%", "kernel 50%", "2:4", "tap 3/9", "tile 2 50%", "weight 30% shared"]
LAYERS = ["0", "3", "5"]


@cache
def made() -> tuple[nn.Sequential, Tensor]:
    """Shared by the tests: repair leaves it as it is."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2, bias=False), nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(288, 4),
    ).eval()  # fmt: skip
    smooth = nn.functional.avg_pool2d(torch.randn(120, 3, 10, 10), 3, 1)  # neighbours tell of each other
    return model, torch.einsum("bihw,io->bohw", smooth, torch.randn(3, 4)) + 0.1 * torch.randn(120, 4, 8, 8)


def planned(model: nn.Module, x: Tensor, text: str, layers: list[str] = LAYERS) -> prunus.Plan:
    plan = plan_patterns(prunus.trace(model, x[:2]), model, dict.fromkeys(layers, text), DPP())
    generator = torch.Generator().manual_seed(3)
    order = {p.module: torch.rand(p.rows, p.n, generator=generator).argsort(1).argsort(1) for p in plan.patterns}
    return with_masks(plan, {p.module: order[p.module] < p.k for p in plan.patterns})


def applied(done: Repaired, plan: prunus.Plan, x: Tensor) -> nn.Module:
    smaller, proof = apply_and_verify_(copied(done.model), plan, x[:2])
    assert proof.passed
    return smaller


@pytest.mark.parametrize("text", PATTERNS)
def test_what_a_mask_leaves_is_refitted_and_nothing_else_is_there(text: str) -> None:
    model, x = made()
    plan = planned(model, x, text)
    done = repair(model, plan, [(x[:100],)], progress=False)
    assert {r.layer for r in done.refits} == {*(p.module for p in plan.patterns), "3", "5", "8"}
    assert all(r.after <= r.before for r in done.refits)
    smaller, bare = applied(done, plan, x), applied(Repaired(model), plan, x)
    for name, stays in supports.supports(model, plan).items():
        weight, dense = smaller.get_parameter(name), model.get_parameter(name)
        assert not weight[~stays].any()
        assert torch.equal(done.model.get_parameter(name)[~stays], dense[~stays]), "as for channels that go"
        assert not torch.equal(weight[stays], dense[stays])
    unseen = x[100:]
    lost = [float((net(unseen) - model(unseen)).detach().square().mean()) for net in (smaller, bare)]
    assert lost[0] < lost[1]


def test_readers_alone_are_the_masked_layers() -> None:
    model, x = made()
    done = repair(model, planned(model, x, "2:4"), [(x,)], config=RepairConfig(layers="readers"), progress=False)
    assert [r.layer for r in done.refits] == LAYERS


def test_a_full_mask_changes_nothing() -> None:
    model, x = made()
    done = repair(model, planned(model, x, "weight 100%"), [(x,)], progress=False)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in done.model.state_dict().items())
    assert done.refits == ()


def test_inputs_that_a_mask_can_do_without_are_made_up_for() -> None:
    """Of twelve inputs that are linear in five, any six and a constant are enough."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.Linear(12, 8)).double()
    x = torch.randn(400, 5, dtype=torch.float64)
    plan = planned(model, x, "weight 6/12", ["1"])
    done = repair(model, plan, [(x,)], progress=False)
    assert done.refits[0].after < 1e-6 < done.refits[0].before
    torch.testing.assert_close(applied(done, plan, x)(x), model(x), rtol=1e-2, atol=1e-2)


def test_noise_is_not_fitted() -> None:
    """Few examples of what can't be made up for: on others the network is no further from the dense one than before."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 80), nn.ReLU(), nn.Linear(80, 6))
    x, others = torch.randn(20, 40), torch.randn(2000, 40)
    plan = planned(model, x, "weight 50%", ["0", "2"])
    done = repair(model, plan, [(x,)], progress=False)
    assert done.refits
    with torch.no_grad():
        wanted, left = model(others), applied(Repaired(model), plan, x)(others)
        repaired = applied(done, plan, x)(others)
    assert float((repaired - wanted).square().mean()) < 1.05 * float((left - wanted).square().mean())


@pytest.mark.parametrize("at_once", [2**24, 40])
def test_columns_are_solved_by_themselves(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Supports of all sizes, none included, however many are factored at once."""
    monkeypatch.setattr(supports, "AT_ONCE", at_once)
    torch.manual_seed(0)
    x, right = torch.randn(2, 30, 7, dtype=torch.float64), torch.randn(2, 7, 5, dtype=torch.float64)
    gram, support = x.transpose(1, 2) @ x, torch.rand(2, 7, 5) < 0.5
    support[0, :, 0], support[1, :, 1] = False, True
    found = solved_within(gram, right, support)
    assert not found[~support].any()
    for group in range(2):
        for column in range(5):
            stays = support[group, :, column]
            if stays.any():
                expected = torch.linalg.solve(gram[group][stays][:, stays], right[group, stays, column])
                torch.testing.assert_close(found[group, stays, column], expected)
    shared = support[:1, :, 3:4].expand(1, 7, 5)
    every = torch.stack([solved_within(gram[:1], right[:1, :, i : i + 1], shared[:, :, :1])[0] for i in range(5)], 2)
    torch.testing.assert_close(solved_within(gram[:1], right[:1], shared), every.squeeze(1)[None])


def test_a_weight_that_is_computed_is_refused() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(20, 8)
    plan = planned(model, x, "2:4", ["0"])
    torch.nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(PlanError, match="parametrizations permanent"):
        repair(model, plan, [(x,)], progress=False)


def test_a_plan_from_before_the_learning_holds_no_mask() -> None:
    model, x = made()
    plan = plan_patterns(prunus.trace(model, x[:2]), model, {"0": "2:4"}, DPP())
    with pytest.raises(PlanError, match="holds no mask"):
        repair(model, plan, [(x,)], progress=False)


def test_prune_repairs_magnitude_masks_without_training() -> None:
    model, x = made()
    one_shot = DPP(epochs=0, tune_epochs=0, init_std=0.0)
    results = [
        prunus.prune(
            model, x[:2], method=one_shot, target=dict.fromkeys(LAYERS, "kernel 50%"), data=[(x[:100],)],
            repair=repair, progress=False,
        )
        for repair in (True, False)
    ]  # fmt: skip
    (with_it, without), unseen = results, x[100:]
    assert [r.layer for r in with_it.refits] == ["0", "3", "5", "8"]
    assert with_it.masked is not None
    assert with_it.masked.refitted
    assert "repair refitted 4 layers" in with_it.plan.notes[0]
    assert without.refits == ()
    for mine, theirs in zip(with_it.plan.patterns, without.plan.patterns, strict=True):
        assert torch.equal(mask_of(mine), mask_of(theirs))
    lost = [float((r.model(unseen) - model(unseen)).detach().square().mean()) for r in results]
    assert lost[0] < 0.5 * lost[1]


def test_weights_that_trained_along_stay_where_they_lose_less() -> None:
    """The dense network knows nothing of these labels, so that its refitted weights are of no use."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(120, 8)
    method = DPP(pattern="weight 50% shared", epochs=5, tune_epochs=0, lr=3e-2)
    result = prunus.prune(
        model, x[:2], method=method, data=[(x, x[:, :3].argmax(1))], loss_fn=nn.functional.cross_entropy, progress=False
    )
    assert result.masked is not None
    assert not result.masked.refitted
    assert result.refits == ()
    assert result.plan.notes == ("not repaired: the weights that trained along with the masks are nearer",)
