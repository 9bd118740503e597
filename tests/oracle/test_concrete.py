"""Hard-concrete gates against the distribution function, quadrature, finite differences and sampling."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from prunus.errors import ConfigError
from prunus.posteriors.concrete import HardConcretePosterior

ALPHAS = [-5.0, -2.0, -0.5, 0.0, 1.0, 2.5, 5.0]
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


def posterior(log_alpha: list[float], **settings_: float) -> HardConcretePosterior:
    q = HardConcretePosterior(len(log_alpha), **settings_)
    with torch.no_grad():
        q.log_alpha.copy_(torch.tensor(log_alpha))
    return q


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def density(s: float, log_alpha: float) -> float:
    """The concrete distribution's density at s in (0, 1), as the paper gives it."""
    alpha = math.exp(log_alpha)
    return BETA * alpha * s ** (-BETA - 1) * (1 - s) ** (-BETA - 1) / (alpha * s ** (-BETA) + (1 - s) ** (-BETA)) ** 2


def exact(log_alpha: float, function) -> float:  # type: ignore[no-untyped-def]
    """E[function(z)] by quadrature over the part that is not cut, plus the two point masses."""
    low, high = -GAMMA / (ZETA - GAMMA), (1 - GAMMA) / (ZETA - GAMMA)
    zero = quad(density, 0, low, args=(log_alpha,), epsabs=1e-12, limit=200)[0]
    one = quad(density, high, 1, args=(log_alpha,), epsabs=1e-12, limit=200)[0]
    between = quad(lambda s: density(s, log_alpha) * function(s * (ZETA - GAMMA) + GAMMA), low, high, epsabs=1e-12)[0]
    return zero * function(0.0) + one * function(1.0) + between


@pytest.mark.parametrize("log_alpha", ALPHAS)
def test_nonzero_probability_against_quadrature(log_alpha: float) -> None:
    assert exact(log_alpha, lambda z: 1.0) == pytest.approx(1, abs=1e-6)
    expected = exact(log_alpha, lambda z: float(z > 0))
    q = posterior([log_alpha])
    assert float(q.score()) == pytest.approx(expected, abs=1e-6)
    assert q.complexity().item() == pytest.approx(expected, abs=1e-6)


def test_known_value() -> None:
    """log_alpha = 0: sigmoid(2/3 log 11) = 11^(2/3) / (1 + 11^(2/3)) for each gate."""
    odds = 11 ** (2 / 3)
    assert posterior([0.0, 0.0]).complexity().item() == pytest.approx(2 * odds / (1 + odds), abs=1e-6)


def test_moments_against_draws() -> None:
    torch.manual_seed(0)
    q = posterior(ALPHAS)
    z = q.rsample(200_000).detach().double()
    assert z.min() == 0
    assert z.max() == 1
    for function, of_draws in (
        (lambda x: x, z),
        (lambda x: x * x, z.square()),
        (lambda x: float(x > 0), (z > 0).double()),
        (lambda x: float(x >= 1), (z == 1).double()),
    ):
        expected = torch.tensor([exact(a, function) for a in ALPHAS], dtype=torch.float64)
        error = of_draws.std(0) / math.sqrt(len(z))
        assert bool(((of_draws.mean(0) - expected).abs() < 4 * error + 1e-6).all())


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_interval_coverage(level: float) -> None:
    torch.manual_seed(0)
    q = posterior(ALPHAS)
    z = q.rsample(200_000).detach()
    low, high = q.interval(level)
    tail = (1 - level) / 2
    below, above = (z < low).float().mean(0), (z > high).float().mean(0)
    assert bool((below <= tail + 4e-3).all() & (above <= tail + 4e-3).all())
    # An end that is not on a point mass leaves exactly a tail beyond it.
    for end, beyond in ((low, below), (high, above)):
        free = beyond[(end > 0) & (end < 1)]
        assert len(free) > 0
        torch.testing.assert_close(free, torch.full_like(free, tail), atol=4e-3, rtol=0)
    # An end at 0 or 1 is there because at least a tail's mass is.
    assert bool(((z == 0).float().mean(0)[low == 0] >= tail - 4e-3).all())
    assert bool(((z == 1).float().mean(0)[high == 1] >= tail - 4e-3).all())


@given(st.floats(-20.0, 20.0))
@settings(max_examples=60, deadline=None)
def test_gate_without_noise_and_decision(log_alpha: float) -> None:
    q = posterior([log_alpha])
    s = sigmoid(float(q.log_alpha.detach()))
    assert float(q.mean().detach()) == pytest.approx(min(1.0, max(0.0, 1.2 * s - 0.1)), abs=1e-6)
    if abs(log_alpha + math.log(11)) > 1e-4:
        assert bool(q.kept()) == (log_alpha > -math.log(11))


@pytest.mark.parametrize("log_alpha", [-20.0, -8.0, -1.0, 0.0, 2.5, 8.0, 20.0])
def test_penalty_gradient_against_finite_differences(log_alpha: float) -> None:
    q = posterior([log_alpha])
    (gradient,) = torch.autograd.grad(q.complexity(), q.log_alpha)
    shift = BETA * math.log(-GAMMA / ZETA)
    # sigmoid'(x) without the cancellation of a difference near 1.
    up, down = (1 / (1 + math.exp(abs(log_alpha - shift) + d)) for d in (-1e-5, 1e-5))
    assert gradient.item() == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-12)


def test_gradient_of_draws_against_finite_differences() -> None:
    q = posterior([-1.0, 0.0, 0.7])

    def drawn() -> torch.Tensor:
        torch.manual_seed(3)
        return q.rsample(64)

    z = drawn()
    (gradient,) = torch.autograd.grad(z.sum(), q.log_alpha)
    # Inside dz/dlog_alpha = (zeta - gamma) s (1 - s) / beta; at 0 and 1 there is none.
    s = (z.detach() - GAMMA) / (ZETA - GAMMA)
    inside = (z > 0) & (z < 1)
    torch.testing.assert_close(gradient, ((ZETA - GAMMA) * s * (1 - s) / BETA * inside).sum(0), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        q.log_alpha.add_(1e-3)
        up = drawn().double().sum(0)
        q.log_alpha.sub_(2e-3)
        down = drawn().double().sum(0)
    torch.testing.assert_close((up - down) / 2e-3, gradient.double(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("log_alpha", [-1000.0, -20.0, 0.0, 20.0, 1000.0])
def test_nothing_is_nan_at_the_extremes(log_alpha: float) -> None:
    torch.manual_seed(0)
    q = posterior([log_alpha] * 3)
    answers = [q.rsample(100_000), q.mean(), q.complexity(), q.score(), *q.interval(0.9999)]
    for answer in answers:
        assert answer.dtype == torch.float32
        assert bool(torch.isfinite(answer).all())
        if answer.requires_grad:
            (gradient,) = torch.autograd.grad(answer.sum(), q.log_alpha)
            assert bool(torch.isfinite(gradient).all())
    assert bool((q.kept() == (log_alpha >= 0)).all())


def test_the_lowest_uniform_draw_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    q = posterior([0.0, 20.0])
    for u in (0.0, 1 - 2**-24):
        monkeypatch.setattr(torch, "rand", lambda *size, u=u, **_: torch.full(size, u))
        z = q.rsample(2)
        (gradient,) = torch.autograd.grad(z.sum(), q.log_alpha)
        assert bool(torch.isfinite(z).all() & torch.isfinite(gradient).all())


def test_the_penalty_alone_closes_every_gate() -> None:
    q = HardConcretePosterior(3)
    assert bool(q.kept().all())
    optimizer = torch.optim.Adam(q.parameters(), lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        q.complexity().backward()
        optimizer.step()
    assert not bool(q.kept().any())
    assert bool((q.mean() == 0).all())


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=20), st.randoms())
@settings(max_examples=30, deadline=None)
def test_permuting_units_permutes_everything(log_alpha: list[float], random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(log_alpha)))
    random.shuffle(order)
    q, p = posterior(log_alpha), posterior([log_alpha[i] for i in order])
    for ours, theirs in zip(
        (q.mean(), q.score(), q.kept(), *q.interval()), (p.mean(), p.score(), p.kept(), *p.interval()), strict=True
    ):
        torch.testing.assert_close(ours[order], theirs, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(q.complexity(), p.complexity(), rtol=1e-5, atol=1e-6)


def test_keep_probability_has_no_ties() -> None:
    p = posterior([9.0, 8.0, 7.0, -9.0]).keep_probability(2)
    assert p.sum() == pytest.approx(2, abs=1e-5)
    assert bool((p.diff() < 0).all())
    torch.testing.assert_close(posterior([12.0] * 4).keep_probability(2), torch.full((4,), 0.5), atol=0.04, rtol=0)


def test_shape_parameters_and_start() -> None:
    q = HardConcretePosterior(8)
    assert q.units == 8
    assert {n: tuple(p.shape) for n, p in q.named_parameters()} == {"log_alpha": (8,)}
    assert (q.beta, q.gamma, q.zeta) == (BETA, GAMMA, ZETA)
    assert q.rsample(3).shape == (3, 8)
    assert bool((q.mean() == 1).all())
    assert q.score().requires_grad is False


@pytest.mark.parametrize(
    "bad",
    [
        {"units": 0},
        {"units": 2, "init_log_alpha": 21.0},
        {"units": 2, "init_log_alpha": math.nan},
        {"units": 2, "beta": 0.0},
        {"units": 2, "beta": 1.5},
        {"units": 2, "gamma": 0.0},
        {"units": 2, "zeta": 1.0},
        {"units": 2, "zeta": math.inf},
    ],
)
def test_settings_are_checked(bad: dict) -> None:
    with pytest.raises(ConfigError):
        HardConcretePosterior(bad.pop("units"), **bad)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, math.nan])
def test_level_is_checked(level: float) -> None:
    with pytest.raises(ConfigError, match="not between 0 and 1"):
        HardConcretePosterior(2).interval(level)
