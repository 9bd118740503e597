"""Oracles of the Dirichlet posterior: closed forms, torch.distributions, scipy, and sampling."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta as beta_distribution
from torch.distributions import Beta, Dirichlet, kl_divergence

from prunus.errors import ConfigError
from prunus.methods.dirichlet import DirichletPruning
from prunus.posteriors.dirichlet import (
    CEILING,
    CUT_AT_ONE,
    FLOOR,
    DirichletPosterior,
    Scale,
    capacity_factor,
    dirichlet_kl,
)

SCALES = get_args(Scale)
PHI = torch.tensor([0.3, 1.2, 2.5, 0.7], dtype=torch.float64)
concentrations = st.lists(st.floats(0.02, 500), min_size=2, max_size=40)


def posterior(phi, **settings_):
    q = DirichletPosterior(len(phi), **settings_)
    with torch.no_grad():
        q.rho.copy_(torch.as_tensor(phi, dtype=torch.float64).log())
    return q


def test_kl_known_value():
    assert dirichlet_kl(PHI, torch.full_like(PHI, 0.5)).item() == pytest.approx(1.2493320975656, abs=1e-12)


@given(concentrations, st.floats(0.01, 10))
@settings(max_examples=60, deadline=None)
def test_kl_equals_torch_and_is_a_divergence(values, prior):
    phi = torch.tensor(values, dtype=torch.float64)
    other = torch.full_like(phi, prior)
    ours, theirs = dirichlet_kl(phi, other), kl_divergence(Dirichlet(phi), Dirichlet(other))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-11)
    assert ours >= -1e-11
    assert dirichlet_kl(phi, phi).abs() < 1e-11


@given(concentrations, st.floats(0.01, 10))
@settings(max_examples=40, deadline=None)
def test_kl_gradient_formula(values, prior):
    phi = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(dirichlet_kl(phi, torch.full_like(phi, prior)), phi)
    with torch.no_grad():
        total = phi.sum()
        expected = (phi - prior) * torch.polygamma(1, phi) - torch.polygamma(1, total) * (total - len(phi) * prior)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_kl_of_two_units_is_that_of_betas():
    a, b = torch.tensor([0.7, 3.0]).double(), torch.tensor([2.0, 0.4]).double()
    expected = kl_divergence(Beta(a[0], a[1]), Beta(b[0], b[1]))
    torch.testing.assert_close(dirichlet_kl(a, b), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_moments_and_intervals_against_draws(scale):
    torch.manual_seed(0)
    q = posterior([0.5, 1.0, 2.0, 4.0, 6.0], scale=scale)
    q.capacity = 0.5
    draws = q.rsample(40_000).detach()
    error = draws.std(0) / math.sqrt(len(draws))
    if scale not in CUT_AT_ONE:
        assert ((draws.mean(0) - q.mean()).abs() < 4 * error).all()
    torch.testing.assert_close(draws.var(0), q.variance(), rtol=0.03, atol=1e-4)
    low, high = q.interval(0.9)
    inside = ((draws >= low) & (draws <= high)).float().mean(0)
    assert (inside >= 0.9 - 0.005).all()
    uncut = high < 1 if scale in CUT_AT_ONE else torch.ones(5, dtype=torch.bool)
    torch.testing.assert_close(inside[uncut], torch.full((int(uncut.sum()),), 0.9), rtol=0, atol=0.005)


def test_variance_of_kept_against_quadrature():
    q = posterior([0.5, 1.0, 2.0, 4.0], scale="kept")
    c, total = float(q.factor()), 7.5
    for phi, ours in zip([0.5, 1.0, 2.0, 4.0], q.variance(), strict=True):
        density = beta_distribution(phi, total - phi).pdf
        one, two = (
            quad(lambda x, f=density, p=p: f(x) * (c * x) ** p, 0, 1 / c)[0]
            + beta_distribution(phi, total - phi).sf(1 / c)
            for p in (1, 2)
        )
        assert float(ours) == pytest.approx(two - one**2, abs=1e-5)


def test_implicit_gradient_of_the_mean():
    torch.manual_seed(0)
    phi = torch.tensor([0.8, 1.5, 3.0])
    q = posterior(phi, scale="none")
    (gradient,) = torch.autograd.grad(q.rsample(100_000)[:, 0].mean(), q.rho)
    total = phi.sum()
    expected = (torch.tensor([1.0, 0, 0]) * total - phi[0]) / total**2 * phi
    torch.testing.assert_close(gradient, expected, rtol=0.05, atol=2e-3)


@given(concentrations, st.floats(0.1, 5))
@settings(max_examples=30, deadline=None)
def test_point_estimate_is_invariant_under_a_common_factor(values, factor):
    phi = np.clip(np.asarray(values), 0.2, 500)
    for scale in SCALES:
        torch.testing.assert_close(
            posterior(phi, scale=scale).mean(), posterior(phi * factor, scale=scale).mean(), rtol=1e-4, atol=1e-6
        )


@given(st.lists(st.floats(0.02, 500), min_size=2, max_size=20, unique=True), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_permuting_units_permutes_everything(values, random):
    order = list(range(len(values)))
    random.shuffle(order)
    q, p = posterior(values), posterior([values[i] for i in order])
    for ours, theirs in ((q.mean(), p.mean()), (q.score(), p.score()), (q.variance(), p.variance())):
        torch.testing.assert_close(ours[order], theirs, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(q.complexity(), p.complexity(), rtol=1e-5, atol=1e-5)
    assert (q.score().argsort() == q.rho.argsort()).all()


@pytest.mark.parametrize("scale", ["none", "kept"])
@pytest.mark.parametrize("prior", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("start", [0.02, 1.0, 1000.0])
def test_the_prior_is_reached_from_anywhere_without_nan(scale, prior, start):
    """Under the KL alone, with sampled gradients flowing as well, phi must arrive at the prior from both sides."""
    torch.manual_seed(0)
    q = DirichletPosterior(16, init_concentration=start, prior_concentration=prior, scale=scale)
    optimizer = torch.optim.Adam(q.parameters(), lr=0.3, betas=(0.9, 0.9))
    for _ in range(60):
        loss = q.complexity() + 1e-6 * (q.rsample(4) - 0.5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert q.rho.grad is not None
        assert torch.isfinite(q.rho.grad).all()
        optimizer.step()
    phi = q.concentration()
    assert ((phi > 0.5 * prior) & (phi < 2 * prior)).all()


@pytest.mark.parametrize(("rho", "wanted"), [(-50.0, 1.0), (50.0, -1.0)])
def test_a_unit_at_the_end_of_the_range_can_return(rho, wanted):
    q = DirichletPosterior(4, prior_concentration=1.0)
    with torch.no_grad():
        q.rho.fill_(rho)
    assert q.concentration().allclose(torch.tensor(FLOOR if rho < 0 else CEILING))
    inward = (-wanted * q.concentration().log()).sum()
    (gradient,) = torch.autograd.grad(inward, q.rho)
    assert (gradient == -wanted).all()
    (gradient,) = torch.autograd.grad(-(-wanted * q.concentration().log()).sum(), q.rho)
    assert (gradient == 0).all()


def test_keep_probability():
    q = posterior([50.0, 30.0, 20.0, 1.0, 0.5], scale="kept")
    state = torch.get_rng_state()
    p = q.keep_probability(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(p, q.keep_probability(2))
    assert p.sum() == pytest.approx(2, abs=1e-5)
    assert (p.diff() <= 0).all()
    torch.testing.assert_close(
        DirichletPosterior(4, scale="kept").keep_probability(2), torch.full((4,), 0.5), rtol=0, atol=0.04
    )
    # Two units: s_1 > s_2 iff s_1 > 1/2 under Beta(phi_1, phi_2).
    expected = beta_distribution(3.0, 2.0).sf(0.5)
    assert float(posterior([3.0, 2.0]).keep_probability(1, draws=20_000)[0]) == pytest.approx(expected, abs=0.015)
    with pytest.raises(ConfigError, match="not between 1 and 5"):
        q.keep_probability(6)


@pytest.mark.parametrize("scale", SCALES)
def test_scales_at_the_start(scale):
    q = DirichletPosterior(8, scale=scale)
    expected = 1 / 8 if scale == "none" else 1.0
    torch.testing.assert_close(q.mean(), torch.full((8,), expected))
    assert sum(p.numel() for p in q.parameters()) == 8
    assert q.rsample(3).dtype == torch.float32


def test_kept_never_inflates():
    q = posterior([0.1, 1.0, 5.0, 100.0], scale="kept")
    assert q.rsample(1000).max() <= 1
    assert (q.mean()[2:] == 1).all()
    assert (q.mean()[:2] < 1).all()


@pytest.mark.parametrize(
    "bad",
    [
        {"units": 0},
        {"units": 4, "init_concentration": 0.0},
        {"units": 4, "prior_concentration": -1.0},
        {"units": 4, "scale": "k"},
        {"units": 4, "kept_fraction": 0.0},
    ],
)
def test_settings_are_checked(bad):
    with pytest.raises(ConfigError):
        DirichletPosterior(bad.pop("units"), **bad)


@given(st.lists(st.floats(0.01, 100.0), min_size=2, max_size=12), st.floats(0.05, 1.0))
@settings(max_examples=60, deadline=None)
def test_capacity_is_what_the_mean_multipliers_sum_to(phi: list[float], capacity: float) -> None:
    means = torch.tensor(phi) / sum(phi)
    factor = capacity_factor(means, capacity)
    assert float((means * factor).clamp(max=1.0).sum()) == pytest.approx(capacity * len(phi), rel=1e-4)


def test_capacity_falls_from_one() -> None:
    method = DirichletPruning()
    q = method.posterior(10)
    for progress, capacity in ((0.0, 1.0), (0.35, 0.7), (0.7, 0.4), (1.0, 0.4)):
        method.anneal_(q, progress)
        assert q.capacity == pytest.approx(capacity)
        assert float(q.mean().detach().sum()) == pytest.approx(10 * capacity, rel=1e-5)


@pytest.mark.parametrize(("num_data", "strength"), [(50, 1.0), (3600, 18.0), (20_000, 100.0), (1_000_000, 100.0)])
def test_strength_of_the_kl_follows_the_number_of_examples(num_data: int, strength: float) -> None:
    assert DirichletPruning(warmup=0.5).beta_at(1.0, num_data) == strength
    assert DirichletPruning(warmup=0.5).beta_at(0.25, num_data) == strength / 2
    assert DirichletPruning(beta=3.0, warmup=0.0).beta_at(0.0, num_data) == 3.0
    for bad in (-1.0, "much", float("nan")):
        with pytest.raises(ConfigError):
            DirichletPruning(beta=bad)
