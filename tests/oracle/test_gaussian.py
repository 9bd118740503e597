"""The Dirac-like posterior against closed forms and enumeration: oracles 14 and 16 of the mathematics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from prunus.errors import ConfigError
from prunus.posteriors.gaussian import GaussianPosterior, ard_complexity

NUMBER = st.floats(-5.0, 5.0)
WIDTH = st.floats(0.01, 3.0)


def test_known_value() -> None:
    assert float(ard_complexity(torch.tensor([0.8]), torch.tensor([0.3]))) == pytest.approx(1.0466174, abs=1e-6)


@given(NUMBER, WIDTH, st.floats(-2.0, 2.0))
@settings(max_examples=60, deadline=None)
def test_complexity_is_the_kl_at_its_best_prior_variance(mu: float, sigma: float, shift: float) -> None:
    m, s = torch.tensor(mu, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    best = (m**2 + s**2).sqrt()
    here = kl_divergence(Normal(m, s), Normal(torch.zeros_like(m), best))
    other = kl_divergence(Normal(m, s), Normal(torch.zeros_like(m), best * math.exp(shift)))
    torch.testing.assert_close(ard_complexity(m, s), here, atol=1e-9, rtol=1e-9)
    assert float(other) >= float(here) - 1e-12


def test_gradient_is_a_spike_at_zero_and_flat_far_away() -> None:
    q = GaussianPosterior(3, noise=0.05)
    with torch.no_grad():
        q.mu.copy_(torch.tensor([0.001, 0.05, 2.0]))
    (gradient,) = torch.autograd.grad(q.complexity(), q.mu)
    expected = q.mu / (q.mu**2 + 0.05**2)
    torch.testing.assert_close(gradient, expected.detach())


def test_moments_intervals_and_decision_against_draws() -> None:
    torch.manual_seed(0)
    q = GaussianPosterior(4, noise=0.1)
    with torch.no_grad():
        q.mu.copy_(torch.tensor([-0.6, 0.0, 0.25, 1.0]))
    z = q.rsample(200_000)
    error = z.std(0) / math.sqrt(len(z))
    assert bool(((z.mean(0) - q.mean()).abs() < 4 * error).all())
    torch.testing.assert_close(z.square().mean(0), q.second_moment(), atol=5e-3, rtol=1e-2)
    low, high = q.interval(0.9)
    torch.testing.assert_close(((z > low) & (z < high)).float().mean(0), torch.full((4,), 0.9), atol=4e-3, rtol=0)
    torch.testing.assert_close((z.abs() < 0.3).float().mean(0), q.tiny_probability(), atol=5e-3, rtol=0)
    assert q.kept().tolist() == [True, False, False, True]


@given(st.lists(st.floats(-3.0, 3.0), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_tiny_noise_is_the_same_decision_as_a_probability(means: list[float]) -> None:
    q = GaussianPosterior(len(means), noise=0.05)
    with torch.no_grad():
        q.mu.copy_(torch.tensor(means))
    sure_to_go, sure_to_stay = q.tiny_probability() > 0.95, q.tiny_probability() < 0.05
    assert not bool((q.kept() & sure_to_go).any())
    assert not bool((~q.kept() & sure_to_stay).any())


def test_kl_of_a_chain_is_the_sum_of_its_links() -> None:
    torch.manual_seed(0)
    first_q, first_p = (torch.softmax(torch.randn(3, dtype=torch.float64), 0) for _ in range(2))
    next_q, next_p = (torch.softmax(torch.randn(3, 4, dtype=torch.float64), 1) for _ in range(2))
    joint_q, joint_p = first_q[:, None] * next_q, first_p[:, None] * next_p
    whole = (joint_q * (joint_q / joint_p).log()).sum()
    links = (first_q * (first_q / first_p).log()).sum() + (first_q * (next_q * (next_q / next_p).log()).sum(1)).sum()
    torch.testing.assert_close(whole, links)


def test_plug_in_error_falls_fourfold_as_the_noise_halves() -> None:
    """E over the noise of an earlier stage collapses onto its mean up to a term in eps^2."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(16, 4, dtype=torch.float64), torch.randint(0, 3, (16,))
    nodes, weights = (torch.from_numpy(a) for a in hermegauss(9))
    weights = weights / weights.sum()

    def loss(theta: Tensor) -> Tensor:
        return nn.functional.cross_entropy(net[2](net[1](net[0](x)) * theta), y)

    def gap(eps: float) -> float:
        one, total = torch.ones(6, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for unit in range(6):
            for node, weight in zip(nodes, weights, strict=True):
                theta = one.clone()
                theta[unit] += eps * node
                total = total + weight * (loss(theta) - loss(one))
        return float(total.detach())

    assert gap(0.2) / gap(0.1) == pytest.approx(4.0, rel=0.05)
    assert gap(0.1) / gap(0.05) == pytest.approx(4.0, rel=0.02)


def test_learned_noise_stays_within_its_range() -> None:
    q = GaussianPosterior(2, learned_noise=True)
    with torch.no_grad():
        q.log_sigma.copy_(torch.tensor([-50.0, 50.0]))
    assert q.std().tolist() == pytest.approx([math.exp(-10), 0.3])
    assert GaussianPosterior(2).log_sigma.requires_grad is False


@pytest.mark.parametrize("bad", [{"noise": 0.0}, {"noise": 1.0}, {"threshold": 1.0}, {"keep": "maybe"}])
def test_settings_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        GaussianPosterior(3, **bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        GaussianPosterior(0)
    with pytest.raises(ConfigError):
        GaussianPosterior(3).interval(1.5)
