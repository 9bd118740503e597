"""Bayesian model reduction: the gain in evidence is that of two models compared by integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from prunus.errors import ConfigError
from prunus.posteriors.lognormal import HIGH, LOCATION, LOG_SIGMA, LOW
from prunus.posteriors.reduced import ReducedLogNormalPosterior, evidence_gain


def gain(mu: float, sigma: float, largest: float) -> float:
    return float(evidence_gain(torch.tensor([mu]).double(), torch.tensor([sigma]).double(), largest))


@pytest.mark.parametrize("largest", [2.0**-8, 0.5, 1e-6])
@pytest.mark.parametrize(
    ("mu", "sigma"), [(0.0, 0.3), (-3.0, 1.0), (-9.0, 4.0), (-18.0, 2.0), (5.0, 3.0), (-30.0, 5.0), (-10.0, 100.0)]
)
def test_it_is_the_ratio_of_two_evidences(mu: float, sigma: float, largest: float) -> None:
    """A likelihood that makes q the exact posterior, integrated under both priors."""

    def evidence(last: float) -> float:
        mode = min(max(mu, LOW), last)
        peak = -0.5 * ((mode - mu) / sigma) ** 2
        area, _ = quad(
            lambda x: math.exp(-0.5 * ((x - mu) / sigma) ** 2 - peak), LOW, last, epsabs=0, epsrel=1e-11, limit=500,
            points=[p for p in (mode, mode - sigma, mode + sigma) if LOW < p < last],
        )  # fmt: skip
        return peak + math.log(area / (last - LOW))

    assert gain(mu, sigma, largest) == pytest.approx(evidence(math.log(largest)) - evidence(HIGH), rel=1e-7, abs=1e-9)


def test_without_data_both_models_are_as_good() -> None:
    assert gain(-10.0, math.exp(LOG_SIGMA[1]), 2.0**-8) == pytest.approx(0.0, abs=3e-3)


def test_louder_units_lose_more() -> None:
    mu = torch.linspace(LOCATION[0], LOCATION[1], 200).double()
    for log_sigma in (-3.0, 0.0, 2.0):
        gains = evidence_gain(mu, torch.full_like(mu, math.exp(log_sigma)), 2.0**-8)
        assert bool((gains.diff() <= 1e-12).all())
        assert float(gains[0]) > 0 > float(gains[-1])


def test_the_corners_are_finite() -> None:
    corners = [(m, math.exp(s)) for m in (*LOCATION, LOW, HIGH, -5.545) for s in LOG_SIGMA]
    assert all(math.isfinite(gain(m, s, 2.0**-8)) for m, s in corners)
    assert gain(-18.0, 1e-6, 2.0**-8) == pytest.approx(math.log(20 / (20 - 8 * math.log(2))))


def posterior_at(mu: list[float], sigma: list[float]) -> ReducedLogNormalPosterior:
    q = ReducedLogNormalPosterior(len(mu))
    with torch.no_grad():
        q.mu.copy_(torch.tensor(mu))
        q.log_sigma.copy_(torch.tensor(sigma).log())
    return q


def test_a_unit_stays_where_its_evidence_says_so() -> None:
    q = posterior_at([0.0, -12.0, -4.0, -6.5], [0.01, 1.0, 0.2, 0.2])
    assert q.kept().tolist() == [True, False, True, False]
    assert q.score().argsort().tolist() == [1, 3, 2, 0]
    assert torch.equal(q.evidence_gain(), -q.score())


def test_signal_to_noise_and_evidence_can_disagree() -> None:
    """A multiplier that is surely tiny has much signal for its noise, and no use."""
    q = posterior_at([-10.0], [0.05])
    assert float(q.snr().detach()) > 10
    assert q.kept().tolist() == [False]


@pytest.mark.parametrize("largest", [0.0, 1.0, 2.0, math.exp(-20), float(np.nan)])
def test_a_border_outside_of_the_prior_is_refused(largest: float) -> None:
    with pytest.raises(ConfigError, match="largest"):
        ReducedLogNormalPosterior(3, largest=largest)
