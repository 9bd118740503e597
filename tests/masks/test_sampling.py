"""Gumbel top-k against enumeration, and the O(n) gradient against the k softmaxes written out (oracles 8-12)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunus.errors import ConfigError, DataError
from prunus.masks.metrics import inclusion_probabilities
from prunus.masks.sampling import gumbel, largest, relaxed, sample

P4 = (0.4, 0.3, 0.2, 0.1)


def enumerated(p: list[float], k: int) -> list[float]:
    """Inclusion probabilities of k draws without replacement, by going through all ordered draws."""
    found = [0.0] * len(p)
    for order in itertools.permutations(range(len(p)), k):
        chance, left = 1.0, 1.0
        for i in order:
            chance, left = chance * p[i] / left, left - p[i]
        for i in order:
            found[i] += chance
    return found


@pytest.mark.parametrize(
    ("p", "k", "wanted"),
    [
        ((1 / 2, 1 / 3, 1 / 6), 2, (0.85, 0.7333, 0.4167)),
        (P4, 2, (0.71587, 0.60833, 0.44127, 0.23452)),
        (P4, 3, (0.92222, 0.87024, 0.75873, 0.44881)),
    ],
)
def test_the_enumeration_is_the_published_one(p: tuple[float, ...], k: int, wanted: tuple[float, ...]) -> None:
    assert enumerated(list(p), k) == pytest.approx(wanted, abs=6e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_inclusion_is_that_of_draws_without_replacement(k: int, scale: float) -> None:
    copies, draws = 200, 100
    logits = torch.log(torch.tensor([P4, P4[::-1]]))
    found = inclusion_probabilities(logits.repeat(copies, 1), k, noise_scale=scale, draws=draws, seed=3)
    found = found.view(copies, 2, 4).mean(0)
    for row, own in zip(found, logits, strict=True):
        p = (own.double() / scale).softmax(0)
        wanted = torch.tensor(enumerated(p.tolist(), k), dtype=torch.float64)
        error = (wanted * (1 - wanted)).clamp_min(0).div(copies * draws).sqrt()
        assert bool(((row - wanted).abs() <= 4.5 * error + 1e-9).all())
    assert torch.allclose(found.sum(1), torch.tensor(float(k), dtype=torch.float64))


def test_little_noise_is_a_sharper_softmax() -> None:
    p = (torch.log(torch.tensor(P4, dtype=torch.float64)) / 0.1).softmax(0)
    assert enumerated(p.tolist(), 2) == pytest.approx((0.99990, 0.98299, 0.01710, 1.7e-5), abs=1e-5)


def by_passes(z: Tensor, index: Tensor) -> Tensor:
    """The k softmaxes, one after the other: [k, n] for one row."""
    found, taken = [], torch.zeros_like(z, dtype=torch.bool)
    for i in index.tolist():
        found.append(z.masked_fill(taken, -math.inf).softmax(0))
        taken = taken.clone()
        taken[i] = True
    return torch.stack(found)


def ordered(z: Tensor, k: int, order: str) -> Tensor:
    index = z.topk(k).indices
    return index if order == "draw" else index.sort().values


@given(
    n=st.integers(1, 9), data=st.data(), temperature=st.sampled_from([0.05, 0.5, 1.0, 5.0]),
    order=st.sampled_from(["draw", "index"]), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_value_and_gradient_are_those_of_the_passes(
    n: int, data: st.DataObject, temperature: float, order: str, seed: int
) -> None:
    k = data.draw(st.integers(1, n))
    generator = torch.Generator().manual_seed(seed)
    phi, noise, g = (torch.randn(2, n, dtype=torch.float64, generator=generator) for _ in range(3))
    phi.requires_grad_()
    z = (phi + noise) / temperature
    written = torch.stack([by_passes(row, ordered(row.detach(), k, order)).sum(0) for row in z])
    (wanted,) = torch.autograd.grad((written * g).sum(), phi)
    mask = largest(z.detach(), k)
    soft = relaxed((phi.detach() + noise) / temperature, mask, k, order)  # type: ignore[arg-type]
    assert torch.allclose(soft, written.detach(), rtol=0, atol=1e-12)
    hard = sample(phi, k, noise, temperature=temperature, order=order)  # type: ignore[arg-type]
    (found,) = torch.autograd.grad((hard * g).sum(), phi)
    assert torch.equal(hard, mask.double())
    scale = max(1.0, float(wanted.abs().max()))
    assert float((found - wanted).abs().max()) < 1e-12 * scale


@pytest.mark.parametrize("order", ["draw", "index"])
def test_the_closed_form_gradient_of_one_row(order: str) -> None:
    torch.manual_seed(0)
    phi, noise, g = (torch.randn(1, 6, dtype=torch.float64) for _ in range(3))
    phi.requires_grad_()
    hard = sample(phi, 3, noise, temperature=0.7, order=order)  # type: ignore[arg-type]
    (found,) = torch.autograd.grad((hard * g).sum(), phi)
    z = ((phi + noise) / 0.7).detach()[0]
    softs = by_passes(z, ordered(z, 3, order))
    wanted = sum(s * (g[0] - (s * g[0]).sum()) for s in softs) / 0.7
    assert torch.allclose(found[0], wanted)  # type: ignore[arg-type]


def test_far_apart_logits_take_the_logarithms_and_agree() -> None:
    torch.manual_seed(0)
    phi = (300 * torch.randn(3, 8, dtype=torch.float64)).requires_grad_()
    g = torch.randn(3, 8, dtype=torch.float64)
    hard = sample(phi, 3, None, temperature=0.4)
    (found,) = torch.autograd.grad((hard * g).sum(), phi)
    z = phi / 0.4
    written = torch.stack([by_passes(row, ordered(row.detach(), 3, "draw")).sum(0) for row in z])
    (wanted,) = torch.autograd.grad((written * g).sum(), phi)
    assert bool(torch.isfinite(found).all())
    assert torch.allclose(found, wanted, atol=1e-12)


def test_rows_of_the_relaxation_sum_to_k_and_its_limits() -> None:
    torch.manual_seed(0)
    phi = torch.randn(5, 12, dtype=torch.float64)
    mask = largest(phi, 4)
    for temperature in (0.1, 1.0, 10.0):
        assert torch.allclose(relaxed(phi / temperature, mask, 4).sum(1), torch.tensor(4.0, dtype=torch.float64))
    assert torch.allclose(relaxed(phi / 1e-4, mask, 4), mask.double(), atol=1e-9)
    hot = relaxed(phi / 1e9, mask, 4)
    position = phi.topk(4).indices
    share = 1 / torch.arange(12, 8, -1, dtype=torch.float64)
    assert torch.allclose(hot.gather(1, position), share.cumsum(0).expand(5, 4), atol=1e-6)
    assert torch.allclose(hot[~mask], share.sum().expand(5 * 8), atol=1e-6)


@given(n=st.integers(1, 40), data=st.data(), seed=st.integers(0, 2**20), levels=st.sampled_from([2, 5, 10_000]))
def test_every_draw_has_exactly_k_of_the_largest(n: int, data: st.DataObject, seed: int, levels: int) -> None:
    k = data.draw(st.integers(1, n))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (4, n), generator=generator).float()
    mask = largest(scores, k)
    assert mask.sum(1).tolist() == [k] * 4
    wanted = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(mask.nonzero()[:, 1].view(4, k), wanted.sort(1).values)


def test_the_whole_is_all_ones_with_a_finite_gradient() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    mask = sample(logits, 5, gumbel(3, 5, (0,)))
    assert torch.equal(mask, torch.ones(3, 5))
    (mask * torch.randn(3, 5)).sum().backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_the_gradient_points_where_the_expected_loss_falls() -> None:
    """Where the loss is linear in the mask, logits that follow the gradient end with the k best elements."""
    torch.manual_seed(0)
    worth = torch.randn(3, 20)
    logits = torch.zeros(3, 20, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.1)
    for step in range(300):
        optimizer.zero_grad()
        (-worth * sample(logits, 5, gumbel(3, 20, (0, step)))).sum().backward()
        optimizer.step()
    assert torch.equal(sample(logits, 5, None).bool(), largest(worth, 5))


def test_noise_is_gumbel_and_follows_the_seed() -> None:
    noise = gumbel(400, 500, (1, 2)).double()
    assert float(noise.mean()) == pytest.approx(0.5772156649, abs=5 * 1.2825 / math.sqrt(200_000))
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.04)
    for limit in (-1.0, 0.0, 2.0):
        wanted = math.exp(-math.exp(-limit))
        assert float((noise <= limit).double().mean()) == pytest.approx(wanted, abs=0.006)
    assert torch.equal(gumbel(3, 4, (7, 1)), gumbel(3, 4, (7, 1)))
    assert not torch.equal(gumbel(3, 4, (7, 1)), gumbel(3, 4, (7, 2)))


def test_noise_is_finite_and_nan_is_refused() -> None:
    assert all(bool(torch.isfinite(gumbel(2000, 2000, (i,))).all()) for i in range(3))
    scores = torch.randn(3, 6)
    scores[1, 2] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        largest(scores, 2)


@pytest.mark.parametrize("k", [0, 6, -1])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"{k} of 5"):
        largest(torch.randn(2, 5), k)


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"temperature": -1.0}, {"noise_scale": -0.1}])
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        sample(torch.randn(2, 5), 2, None, **bad)  # type: ignore[arg-type]
