"""Masks learned with the weights: planted supports are found, constraints hold all along, models come back clean."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from masked import Masked, masked
from prunus.data.evaluation import mean_loss
from prunus.errors import ConfigError, DataError
from prunus.learning.masks import learn_masks
from prunus.learning.problem import Problem
from prunus.masks.layers import MaskedWeight, MaskSet, layer_of, masked_weights
from prunus.masks.patterns import Pattern
from prunus.masks.sampling import gumbel, largest, sample
from prunus.methods.dpp import DynamicProbabilisticPruning as DPP
from prunus.plan.request import requested

Batch = tuple[Tensor, Tensor]


def planted(features: int = 20, outputs: int = 4, k: int = 3) -> tuple[nn.Module, list[Batch], Tensor]:
    """Every output is a linear function of its own k features; the network starts from noise."""
    generator = torch.Generator().manual_seed(0)
    support = torch.zeros(outputs, features)
    for row in support:
        row[torch.randperm(features, generator=generator)[:k]] = 1
    truth = support * (1 + torch.rand(outputs, features, generator=generator))
    x = torch.randn(2048, features, generator=generator)
    y = x @ truth.T
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(features, outputs)), list(zip(x.split(64), y.split(64), strict=True)), support.bool()


def test_a_planted_support_is_found() -> None:
    model, batches, support = planted()
    method = DPP(pattern="weight 3/20", epochs=20, tune_epochs=10, lr=0.01, logit_lr_mult=1, prior=0.0, init_std=0.1,
                 noise_scale=(1.0, 0.1))  # fmt: skip
    result = masked(model, ["0"], method, batches, F.mse_loss)
    assert torch.equal(result.masks["0"], support)
    assert torch.equal(layer_of(result.model, "0").weight != 0, support)
    assert mean_loss(result.model, batches, F.mse_loss) < 1e-3
    assert result.history[-1].confidence["0"] > result.history[0].confidence["0"]
    assert result.history[-1].flips["0"] < result.history[0].flips["0"]
    assert result.history[-1].entropy["0"] < result.history[0].entropy["0"]
    assert result.history[-1].keep_probability["0"] > result.history[0].keep_probability["0"]
    assert torch.allclose(result.keep_probability["0"].sum(1), torch.full((len(support),), 3.0))
    assert float(result.keep_probability["0"][support].mean()) > 0.95


def test_the_mask_of_a_frozen_network_is_found() -> None:
    model, batches, support = planted()
    with torch.no_grad():
        for _ in range(200):
            x, y = batches[0][0], batches[0][1]
            layer_of(model, "0").weight.copy_(torch.linalg.lstsq(x, y).solution.T)
            layer_of(model, "0").bias.zero_()
    before = copy.deepcopy(model)
    method = DPP(pattern="weight 3/20", epochs=8, tune_epochs=2, train_weights=False, prior=0.0, lr=0.01)
    result = masked(model, ["0"], method, batches, F.mse_loss)
    assert torch.equal(result.masks["0"], support)
    kept = layer_of(result.model, "0").weight[support]
    assert torch.equal(kept, layer_of(before, "0").weight[support])


def convolutional() -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    x, y = torch.randn(96, 3, 8, 8), torch.arange(96) % 3
    return model, list(zip(x.split(16), y.split(16), strict=True))


QUICK = DPP(pattern="kernel 50%", epochs=2, tune_epochs=1, lr=2e-3)


def quick(method: DPP = QUICK, seed: int = 0) -> Masked:
    model, batches = convolutional()
    return masked(model, ["3"], method, batches, F.cross_entropy, seed=seed)


@pytest.mark.parametrize("pattern", ["weight 25%", "kernel 2/8", "2:4", "tap 3/9", "tile 2 50%"])
def test_the_constraint_holds_in_the_result(pattern: str) -> None:
    result = quick(replace(QUICK, pattern=pattern))
    layout, mask = result.layouts["3"], result.masks["3"]
    assert bool((mask.sum(1) == layout.k).all())
    weight = layer_of(result.model, "3").weight.detach()
    assert bool((weight[~layout.on_weight(mask).expand(weight.shape)] == 0).all())
    assert float((weight != 0).float().mean()) == pytest.approx(layout.density)


def test_the_given_model_is_untouched_and_the_result_is_a_plain_one() -> None:
    model, batches = convolutional()
    before = copy.deepcopy(model.state_dict())
    result = masked(model, ["0", "3"], replace(QUICK, pattern="weight 50%"), batches, F.cross_entropy)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert list(result.model.state_dict()) == list(before)
    assert [n for n, _ in result.model.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert type(result.model[0]) is nn.Conv2d  # type: ignore[index]
    assert all(p.requires_grad for p in result.model.parameters())


def test_the_same_seed_gives_the_same_masks_and_weights() -> None:
    a, b, c = quick(seed=3), quick(seed=3), quick(seed=4)
    assert all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a.model.parameters(), c.model.parameters(), strict=True))


def test_every_draw_in_training_is_new_and_exact_and_eval_is_the_mode() -> None:
    model, _ = convolutional()
    mask = DPP(pattern="weight 25%", prior=0.0).masks(model, ["3"])["3"]
    with masked_weights(model, {"3": mask}):
        model.train()
        draws = [layer_of(model, "3").weight.detach() != 0 for _ in range(3)]
        assert all(bool((d.flatten(1).sum(1) == 18).all()) for d in draws)
        assert not torch.equal(draws[0], draws[1])
        model.eval()
        rest = [layer_of(model, "3").weight.detach() for _ in range(2)]
        assert torch.equal(rest[0], rest[1])
        wanted = mask.logits.topk(18, 1).indices.sort(1).values
        assert torch.equal((rest[0] != 0).flatten(1).nonzero()[:, 1].view(6, 18), wanted)


@pytest.mark.parametrize("pattern", ["weight 25%", "kernel 50%", "filter 50%", "2:4", "tap 3/9", "kernel 50% shared"])
def test_the_masked_weight_has_the_gradients_of_weight_times_mask(pattern: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3).double()
    layout = Pattern.parse(pattern).layout(layer, "l")
    mask = MaskedWeight(layout, torch.randn(layout.rows, layout.n), seed=4).double()
    mask.temperature, mask.noise_scale = 0.7, 0.5
    probe = torch.randn_like(layer.weight)
    wanted_mask = sample(mask.logits, layout.k, gumbel(layout.rows, layout.n, (4, 0)), temperature=0.7, noise_scale=0.5)
    product = layer.weight * layout.on_weight(wanted_mask)
    wanted = torch.autograd.grad((product * probe).sum(), (layer.weight, mask.logits))
    weight = mask(layer.weight)
    found = torch.autograd.grad((weight * probe).sum(), (layer.weight, mask.logits))
    assert torch.equal(weight, product)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(found, wanted, strict=True))


def test_a_layer_called_twice_has_one_mask_in_a_step() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                self.seen.append(self.inner.weight.detach() != 0)
                x = torch.relu(self.inner(x))
            return self.head(x)

        def __deepcopy__(self, memo: object) -> Twice:
            return self  # what is trained is this one, so that what its forward saw is here

    batches = [(torch.randn(8, 6), torch.arange(8) % 2)] * 3
    model = Twice()
    method = DPP(pattern="weight 50%", epochs=1, tune_epochs=0, prior=0.0)
    problem = Problem(
        model,
        batches[0][0],
        prunus.trace(model, batches[0][0]),
        requested(None, None, method=method.name, takes=method.targets, optional=True),
        batches,
        F.cross_entropy,
    )
    model.seen.clear()
    learn_masks(method, problem, problem.learning(method.name), {"inner": method.pattern})
    seen = model.seen
    assert all(torch.equal(a, b) for a, b in zip(seen[:6:2], seen[1:6:2], strict=True))
    assert not torch.equal(seen[0], seen[2])


def test_grids_follow_output_channels_in_transposed_convolutions_too() -> None:
    layer = nn.ConvTranspose2d(4, 3, 2)
    layout = Pattern.parse("weight 50%").layout(layer, "l")
    mask = MaskedWeight(layout, torch.randn(layout.rows, layout.n), bits=4)
    mask.freeze_()
    on_grid = layout.form.rows(mask(layer.weight).detach())
    for channel in on_grid:
        step = channel.abs().max() / 7
        assert torch.allclose(channel / step, (channel / step).round(), atol=1e-4)


def test_draws_are_shared_when_asked() -> None:
    mask = MaskedWeight(Pattern.parse("weight 50%").layout(nn.Linear(8, 3), "l"), torch.zeros(3, 8), resample_every=2)
    drawn = [mask(torch.ones(3, 8)).detach() for _ in range(4)]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[0], drawn[2])


def test_logits_learn_where_a_mask_is_drawn_and_weights_always() -> None:
    layer = nn.Linear(8, 3)
    mask = MaskedWeight(Pattern.parse("weight 50%").layout(layer, "l"), torch.zeros(3, 8), resample_every=3)
    learned = []
    for _ in range(6):
        mask.logits.grad = layer.weight.grad = None
        weight = mask(layer.weight)
        (weight * torch.arange(24.0).view(3, 8)).sum().backward()
        learned.append(mask.logits.grad is not None)
        assert torch.equal(layer.weight.grad != 0, (weight != 0) & (torch.arange(24).view(3, 8) > 0))
    assert learned == [True, False, False, True, False, False]


DRAWS = 400


def test_the_gradient_follows_the_expected_loss() -> None:
    """Over many draws the straight-through gradient points where finite differences of the expected loss do."""
    torch.manual_seed(0)
    layer, x, y = nn.Linear(8, 2), torch.randn(64, 8), torch.randn(64, 2)
    logits = torch.randn(2, 8)
    layout = Pattern.parse("weight 3/8").layout(layer, "l")

    def expected(values: Tensor) -> float:
        mask = MaskedWeight(layout, values, seed=1)
        with torch.no_grad():
            return float(torch.stack([F.mse_loss(F.linear(x, mask(layer.weight)), y) for _ in range(DRAWS)]).mean())

    mask = MaskedWeight(layout, logits, seed=1)
    for _ in range(DRAWS):
        (F.mse_loss(F.linear(x, mask(layer.weight.detach())), y) / DRAWS).backward()
    slopes = torch.zeros(2, 8)
    for i in range(2):
        for j in range(8):
            step = torch.zeros(2, 8)
            step[i, j] = 0.3
            slopes[i, j] = (expected(logits + step) - expected(logits - step)) / 0.6
    assert mask.logits.grad is not None
    assert float(F.cosine_similarity(mask.logits.grad.flatten(), slopes.flatten(), dim=0)) > 0.9


def test_the_best_of_some_draws_is_no_worse_than_the_mode() -> None:
    method = replace(QUICK, tune_epochs=0, noise_scale=(1.0, 1.0))
    assert quick(replace(method, best_of=6)).fixed_loss <= quick(method).fixed_loss


def test_without_drawing_the_masks_are_those_of_the_magnitudes() -> None:
    model, batches = convolutional()
    method = replace(QUICK, pattern="weight 25%", epochs=0, init_std=0.0, prior=1.0)
    result = masked(model, ["3"], method, batches, F.cross_entropy)
    assert torch.equal(result.masks["3"], largest(layer_of(model, "3").weight.detach().abs().flatten(1), 18))
    assert result.history == ()


def test_frozen_weights_are_not_tuned_and_their_statistics_are_estimated() -> None:
    method = replace(QUICK, train_weights=False)
    with_tuning, without = quick(replace(method, tune_epochs=3)), quick(replace(method, tune_epochs=0))
    assert all(
        torch.equal(a, b)
        for a, b in zip(with_tuning.model.state_dict().values(), without.model.state_dict().values(), strict=True)
    )


def test_what_does_not_fit_is_refused_before_training() -> None:
    model, batches = convolutional()
    with pytest.raises(ConfigError, match=r"(?s)'0'.*no multiple of 4"):
        masked(model, ["3", "0"], replace(QUICK, pattern="2:4"), batches, F.cross_entropy)
    with pytest.raises(ConfigError, match="no layer of that name"):
        masked(model, ["33"], QUICK, batches, F.cross_entropy)
    with pytest.raises(ConfigError, match="BatchNorm2d"):
        masked(model, ["1"], QUICK, batches, F.cross_entropy)
    with pytest.raises(ConfigError, match="names no group"):
        masked(model, [], QUICK, batches, F.cross_entropy)
    formerly, now = nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm
    for computed in (formerly, now):
        model, batches = convolutional()
        computed(layer_of(model, "3"))
        with pytest.raises(ConfigError, match="parametrised already"):
            masked(model, ["3"], QUICK, batches, F.cross_entropy)


def test_bad_data_names_the_step() -> None:
    model, batches = convolutional()
    batches[2] = (batches[2][0] * torch.nan, batches[2][1])
    with pytest.raises(DataError, match="epoch 0, step 2"):
        masked(model, ["3"], QUICK, batches, F.cross_entropy)


BAD: list[dict[str, object]] = [
    {"epochs": -1}, {"temperature": (0.0, 1.0)}, {"noise_scale": (-1.0, 0.0)}, {"lr": 0.0},
    {"pattern": "half"},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_settings_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        DPP(**bad)  # type: ignore[arg-type]


def test_temperature_and_noise_fall_step_by_step_and_rest_in_the_last_epoch() -> None:
    method = DPP(temperature=(5.0, 1.0), noise_scale=(1.0, 0.2), epochs=5)
    assert method.schedule(0) == (5.0, 1.0)
    assert method.schedule(2) == pytest.approx((3.0, 0.6))
    assert method.schedule(3.5) == pytest.approx((1.5, 0.3))
    assert method.schedule(4) == method.schedule(4.9) == pytest.approx((1.0, 0.2))
    only = replace(method, epochs=1)
    assert only.schedule(0.25) == pytest.approx((3.0, 0.6))
    assert only.schedule(0.5) == only.schedule(0.9) == pytest.approx((1.0, 0.2))


def test_one_epoch_of_drawing_ends_with_the_end_values(monkeypatch: pytest.MonkeyPatch) -> None:
    net, batches, _ = planted()
    seen: list[tuple[float, float]] = []
    monkeypatch.setattr(MaskSet, "schedule_", lambda self, *values: seen.append(values))
    masked(net, ["0"], DPP(pattern="weight 3/20", epochs=1, tune_epochs=1), batches, F.mse_loss)
    assert len(seen) == 1 + len(batches)  # once before the first step, not while tuning
    assert seen[0] == (5.0, 0.3)
    assert seen[-1] == pytest.approx((0.5, 0.03))
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("setting", ["order", "scheme", "draws"])
def test_words_that_a_setting_does_not_know_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){setting}.*'anyhow' is not known.*give one of"):
        DPP(**{setting: "anyhow"})  # type: ignore[arg-type]
