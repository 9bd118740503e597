"""Truncated log-normal multipliers against quadrature, finite differences and draws: oracle 15 of the mathematics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import truncnorm
from torch import Tensor

from prunus.errors import ConfigError
from prunus.posteriors.lognormal import (
    HIGH,
    LOCATION,
    LOG_SIGMA,
    LOW,
    TruncatedLogNormalPosterior,
    truncated_normal_kl,
    truncated_normal_quantile,
)

MILD = [(-1.0, 0.7), (0.0, 0.3), (-10.0, 4.0), (-19.0, 2.0), (3.0, 1.5), (-24.0, 3.0), (-6.0, 60.0), (0.5, 0.01)]
"""mu, sigma: inside, on the end, outside of either end, nearly the prior, thirty and more sigmas outside."""
EXTREMES = [
    (m, s)
    for m in (-60.0, -20.0, -19.999, -10.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 20.0, 60.0)
    for s in (-30.0, -20.0, -10.0, -5.0, 0.0, 5.0, 9.0)
]


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def posterior(pairs: list[tuple[float, float]]) -> TruncatedLogNormalPosterior:
    """From mu and log sigma of each unit."""
    q = TruncatedLogNormalPosterior(len(pairs))
    with torch.no_grad():
        q.mu.copy_(torch.tensor([m for m, _ in pairs]))
        q.log_sigma.copy_(torch.tensor([s for _, s in pairs]))
    return q


def mild() -> TruncatedLogNormalPosterior:
    return posterior([(m, math.log(s)) for m, s in MILD])


def density(mu: float, sigma: float):  # type: ignore[no-untyped-def]
    """The truncated normal's density, the ends of its bulk, and its value at the mode for scale."""
    mode = min(max(mu, LOW), HIGH)

    def relative(x: float) -> float:
        return math.exp(-((x - mode) * (x + mode - 2 * mu)) / (2 * sigma**2))

    low, high = max(LOW, mode - 12 * sigma), min(HIGH, mode + 12 * sigma)
    whole = quad(relative, low, high, points=[mode], epsabs=0, epsrel=1e-12, limit=200)[0]
    return (lambda x: relative(x) / whole), low, high


def expectation(function, mu: float, sigma: float) -> float:  # type: ignore[no-untyped-def]
    q, low, high = density(mu, sigma)
    return quad(lambda x: q(x) * function(x), low, high, epsabs=0, epsrel=1e-11, limit=200)[0]


def test_known_value() -> None:
    assert truncated_normal_kl(double(-1.0), double(0.7)).item() == pytest.approx(2.1243510250, abs=1e-10)


@pytest.mark.parametrize(("mu", "sigma"), MILD)
def test_complexity_against_quadrature(mu: float, sigma: float) -> None:
    q, low, high = density(mu, sigma)

    def integrand(x: float) -> float:
        return q(x) * math.log(q(x) * (HIGH - LOW)) if q(x) > 0 else 0.0

    expected = quad(integrand, low, high, epsabs=1e-12, epsrel=1e-11, limit=200)[0]
    assert truncated_normal_kl(double(mu), double(sigma)).item() == pytest.approx(expected, abs=1e-9)


@given(st.floats(-20.0, 20.0), st.floats(-20.0, 5.0))
@settings(max_examples=60, deadline=None)
def test_complexity_is_a_divergence_and_symmetric(mu: float, log_sigma: float) -> None:
    sigma = double(log_sigma).exp()
    here = truncated_normal_kl(double(mu), sigma)
    assert bool(torch.isfinite(here).all())
    assert here.item() >= -1e-12
    if mu > -1e-3 or mu < -20:
        return  # the mirror image of what is nearly on an end is on it, in floating point
    torch.testing.assert_close(truncated_normal_kl(LOW + HIGH - double(mu), sigma), here, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("mu", "sigma"), [(20.0, 1e-8), (1.0, 1e-4), (-21.0, 1e-6), (5.0, 0.02)])
def test_far_outside_it_is_an_exponential_at_the_end(mu: float, sigma: float) -> None:
    """KL(Exp(rate) || uniform of length L) = log(rate L) - 1, rate = distance / sigma^2, to (sigma / distance)^2."""
    distance = mu - HIGH if mu > LOW else LOW - mu
    expected = math.log(distance / sigma**2 * (HIGH - LOW)) - 1
    tolerance = 2 * (sigma / distance) ** 2 + 1e-12
    assert truncated_normal_kl(double(mu), double(sigma)).item() == pytest.approx(expected, abs=tolerance)


def test_the_three_forms_meet() -> None:
    """On the end (alpha = 0) and thirty sigmas outside of it, in value and slope."""
    for alpha in (0.0, 30.0):
        for sigma in (1e-3, 0.05, 0.6):
            step = 1e-7 * max(alpha, 1.0)
            at = double(*((alpha + d) * sigma for d in (-step, 0.0, step))).requires_grad_()
            values = truncated_normal_kl(at, torch.full_like(at, sigma))
            (slopes,) = torch.autograd.grad(values.sum(), at)
            torch.testing.assert_close(values.diff(), (step * sigma * slopes[1]).expand(2), rtol=1e-6, atol=2e-13)
            torch.testing.assert_close(slopes, slopes[1].expand(3), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("mu", [-30.0, -20.0, -19.5, -10.0, -1.0, 0.0, 0.3, 2.0, 20.0])
@pytest.mark.parametrize("log_sigma", [-12.0, -5.0, -1.0, 0.0, 1.5, 5.0])
def test_complexity_gradient_against_finite_differences(mu: float, log_sigma: float) -> None:
    def kl(m: Tensor, s: Tensor) -> Tensor:
        return truncated_normal_kl(m, s.exp())

    m, s = double(mu).requires_grad_(), double(log_sigma).requires_grad_()
    gradients = torch.autograd.grad(kl(m, s).sum(), (m, s))
    # A step's length is that on which KL changes: sigma in mu, 1 in log sigma.
    steps = (1e-4 * math.exp(min(log_sigma, 0.0)), 1e-4)
    with torch.no_grad():
        for which, (gradient, step) in enumerate(zip(gradients, steps, strict=True)):
            shift = [(step if which == i else 0.0) for i in (0, 1)]
            up, down = kl(m + shift[0], s + shift[1]), kl(m - shift[0], s - shift[1])
            wide = kl(m + 2 * shift[0], s + 2 * shift[1]) - kl(m - 2 * shift[0], s - 2 * shift[1])
            expected = (8 * (up - down) - wide) / (12 * step)
            torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-11 / step)


@pytest.mark.parametrize("index", range(len(MILD)))
def test_moments_against_quadrature(index: int) -> None:
    q, (mu, sigma) = mild(), MILD[index]
    sigma = math.exp(q.log_sigma[index].item())
    first = expectation(math.exp, mu, sigma)
    second = expectation(lambda x: math.exp(2 * x), mu, sigma)
    variance = expectation(lambda x: (math.exp(x) - first) ** 2, mu, sigma)
    assert q.mean()[index].item() == pytest.approx(first, rel=2e-6)
    assert q.second_moment()[index].item() == pytest.approx(second, rel=2e-6)
    assert q.snr()[index].item() == pytest.approx(first / math.sqrt(variance), rel=2e-6)


@given(st.floats(-12.0, -0.5), st.floats(0.1, 2.0))
@settings(max_examples=40, deadline=None)
def test_moments_are_the_closed_form_where_that_has_digits(mu: float, sigma: float) -> None:
    q = posterior([(mu, math.log(sigma))])
    m, s = (x.detach() for x in q._location_and_scale())
    low, high = (LOW - m) / s, (HIGH - m) / s
    whole = torch.special.ndtr(high) - torch.special.ndtr(low)
    for n, ours in ((1, q.mean()), (2, q.second_moment())):
        part = torch.special.ndtr(high - n * s) - torch.special.ndtr(low - n * s)
        expected = (n * m + n * n * s * s / 2).exp() * part / whole
        torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=0)


def test_signal_to_noise_of_tiny_noise() -> None:
    """Inside std / mean of theta is sigma, far outside it is sigma^2 / distance; no digits are lost to either."""
    inside = posterior([(-5.0, s) for s in (-20.0, -15.0, -8.0)])
    torch.testing.assert_close(inside.snr(), (-inside.log_sigma).exp(), rtol=1e-5, atol=0)
    outside = posterior([(20.0, s) for s in (-20.0, -15.0, -8.0)])
    torch.testing.assert_close(outside.snr(), 20 * (-2 * outside.log_sigma).exp(), rtol=1e-5, atol=0)


def test_moments_and_intervals_against_draws() -> None:
    torch.manual_seed(0)
    q = mild()
    theta = q.rsample(200_000).detach().double()
    assert theta.max() <= 1
    # Where theta^2 is all in the rarest draws, the draws' own standard error says nothing; log theta is compared there.
    light = [i for i, (mu, _) in enumerate(MILD) if mu > -10]
    for draws, exact in ((theta, q.mean()), (theta.square(), q.second_moment())):
        error = draws.std(0) / math.sqrt(len(draws))
        # What fp32 rounds theta and its moments to is comparable to the error of a unit with no noise.
        assert bool(((draws.mean(0) - exact).abs() < 4 * error + 1e-7 * exact)[light].all())
    for power in (1, 2):
        draws = theta.log() ** power
        expected = double(*(expectation(lambda x, p=power: x**p, *pair) for pair in MILD))  # type: ignore[misc]
        error = draws.std(0) / math.sqrt(len(draws))
        assert bool(((draws.mean(0) - expected).abs() < 4 * error + 1e-7 * expected.abs()).all())
    for level in (0.5, 0.9):
        low, high = q.interval(level)
        inside = ((theta >= low) & (theta <= high)).double().mean(0)
        torch.testing.assert_close(inside[:-1], torch.full_like(inside[:-1], level), atol=5e-3, rtol=0)


@pytest.mark.parametrize(("mu", "sigma"), [p for p in MILD if abs(p[0] + 10) < 3 * p[1] + 10])
def test_quantiles_against_scipy(mu: float, sigma: float) -> None:
    u = torch.tensor([[1e-6], [0.025], [0.3], [0.5], [0.9], [1 - 1e-6]], dtype=torch.float64)
    ours = truncated_normal_quantile(u, double(mu), double(sigma))[:, 0]
    exact = truncnorm((LOW - mu) / sigma, (HIGH - mu) / sigma, loc=mu, scale=sigma)
    torch.testing.assert_close(ours, torch.from_numpy(exact.ppf(u.numpy()[:, 0])), rtol=1e-8, atol=1e-8)


def test_quantiles_far_outside_are_those_of_an_exponential() -> None:
    u = torch.tensor([[0.01], [0.5], [0.99]], dtype=torch.float64)
    mu, sigma = double(20.0, -40.0), double(1e-4, 1e-4)
    expected = torch.cat([u.log(), -torch.log1p(-u)], dim=1) * 1e-8 / 20
    from_end = truncated_normal_quantile(u, mu, sigma) - double(HIGH, LOW)
    torch.testing.assert_close(from_end[:, 0], expected[:, 0], rtol=1e-8, atol=0)
    torch.testing.assert_close(from_end[:, 1], expected[:, 1], rtol=0, atol=4e-15)


@pytest.mark.parametrize(("mu", "sigma"), [p for p in MILD if p[1] > 0.1])
def test_gradient_of_draws_against_finite_differences(mu: float, sigma: float) -> None:
    u = torch.tensor([[0.02], [0.4], [0.97]], dtype=torch.float64)
    m, s = double(mu), double(sigma)
    assert torch.autograd.gradcheck(
        lambda a, b: truncated_normal_quantile(u, a, b),
        (m.requires_grad_(), s.requires_grad_()),
        eps=1e-6,
        atol=1e-6,
        rtol=1e-5,
    )


def test_gradient_of_the_mean_by_draws() -> None:
    torch.manual_seed(0)
    q = posterior([(-1.0, -0.5), (0.5, -0.3), (-3.0, 1.0)])
    exact = torch.autograd.grad(q.mean().sum(), (q.mu, q.log_sigma))
    drawn = torch.autograd.grad(q.rsample(100_000).mean(0).sum(), (q.mu, q.log_sigma))
    for a, b in zip(exact, drawn, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=2e-3)


def test_nothing_is_nan_at_the_extremes() -> None:
    torch.manual_seed(0)
    q = posterior(EXTREMES)
    answers = [q.rsample(500), q.mean(), q.second_moment(), q.snr(), q.complexity(), *q.interval(0.999)]
    for answer in answers:
        assert answer.dtype == torch.float32
        assert bool(torch.isfinite(answer).all())
        if answer.requires_grad:
            for gradient in torch.autograd.grad(answer.sum(), (q.mu, q.log_sigma)):
                assert bool(torch.isfinite(gradient).all())
    low, high = q.interval()
    assert bool(((low <= high) & (low >= 0) & (high <= 1)).all())
    assert bool((q.score() > 0).all())


def test_nothing_is_nan_where_uniform_draws_end() -> None:
    q = posterior(EXTREMES)
    u = torch.tensor([[1e-16], [1 - 2**-53]], dtype=torch.float64)
    x = truncated_normal_quantile(u, *q._location_and_scale())
    assert bool(((x >= LOW) & (x <= HIGH)).all())
    for gradient in torch.autograd.grad(x.sum(), (q.mu, q.log_sigma)):
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize(("end", "wanted"), [(0, 1.0), (1, -1.0)])
def test_a_parameter_outside_its_range_can_return(end: int, wanted: float) -> None:
    q = posterior([(LOCATION[end] - 7 * wanted, LOG_SIGMA[end] - 7 * wanted)])
    mu, sigma = q._location_and_scale()
    assert mu.item() == LOCATION[end]
    assert sigma.item() == pytest.approx(math.exp(LOG_SIGMA[end]))
    inward = -wanted * (mu + sigma.log()).sum()
    for gradient in torch.autograd.grad(inward, (q.mu, q.log_sigma), retain_graph=True):
        assert gradient.item() == pytest.approx(-wanted)
    for gradient in torch.autograd.grad(-inward, (q.mu, q.log_sigma)):
        assert gradient.item() == 0


def test_the_complexity_alone_drowns_every_unit() -> None:
    q = TruncatedLogNormalPosterior(3)
    assert bool(q.kept().all())
    before = q.complexity().item()
    optimizer = torch.optim.Adam(q.parameters(), lr=0.3, betas=(0.9, 0.9))
    for _ in range(50):
        optimizer.zero_grad()
        q.complexity().backward()
        optimizer.step()
    assert q.complexity().item() < 0.05 * before
    assert not bool(q.kept().any())


def test_decision_is_at_a_ratio_of_one() -> None:
    q = posterior([(-3.0, s / 10) for s in range(-30, 31)])
    ratio = q.snr()
    assert torch.equal(q.kept(), ratio >= 1)
    assert bool(q.kept()[0])
    assert not bool(q.kept()[-1])
    assert q.score().requires_grad is False
    torch.testing.assert_close(ratio, q.score())


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-12, 5)), min_size=2, max_size=12), st.randoms())
@settings(max_examples=30, deadline=None)
def test_permuting_units_permutes_everything(pairs: list[tuple[float, float]], random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(pairs)))
    random.shuffle(order)
    q, p = posterior(pairs), posterior([pairs[i] for i in order])
    for ours, theirs in zip(
        (q.mean(), q.second_moment(), q.score(), q.kept(), *q.interval()),
        (p.mean(), p.second_moment(), p.score(), p.kept(), *p.interval()),
        strict=True,
    ):
        torch.testing.assert_close(ours[order], theirs, rtol=1e-5, atol=0)
    torch.testing.assert_close(q.complexity(), p.complexity(), rtol=1e-5, atol=1e-6)


def test_shape_parameters_and_start() -> None:
    q = TruncatedLogNormalPosterior(8)
    assert q.units == 8
    assert {n: tuple(p.shape) for n, p in q.named_parameters()} == {"mu": (8,), "log_sigma": (8,)}
    assert bool((q.mu == 0).all() & (q.log_sigma == -5).all())
    assert q.rsample(3).shape == (3, 8)
    # Half of a normal at log 1.
    expected = 1 - math.exp(-5) * math.sqrt(2 / math.pi)
    torch.testing.assert_close(q.mean(), torch.full((8,), expected), atol=1e-4, rtol=0)


def test_keep_probability_tells_units_apart_that_round_to_one() -> None:
    q = posterior([(5.0, -9.0), (5.0, -8.0), (5.0, -7.0)])
    p = q.keep_probability(1)
    assert p.sum() == pytest.approx(1, abs=1e-5)
    # The least of exponentials: probabilities in proportion to the rates.
    rates = double(18, 16, 14).exp()
    torch.testing.assert_close(p.double(), rates / rates.sum(), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "bad",
    [
        {"units": 0},
        {"units": 2, "init_mu": 21.0},
        {"units": 2, "init_mu": math.nan},
        {"units": 2, "init_log_sigma": -21.0},
        {"units": 2, "init_log_sigma": 5.5},
    ],
)
def test_settings_are_checked(bad: dict) -> None:
    with pytest.raises(ConfigError):
        TruncatedLogNormalPosterior(bad.pop("units"), **bad)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, math.nan])
def test_level_is_checked(level: float) -> None:
    with pytest.raises(ConfigError, match="not between 0 and 1"):
        TruncatedLogNormalPosterior(2).interval(level)
