"""Every posterior passes the check, and the check finds what is wrong with deliberately wrong ones."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunus.posteriors import (
    DirichletPosterior,
    GaussianPosterior,
    HardConcretePosterior,
    Posterior,
    ReducedLogNormalPosterior,
    TruncatedLogNormalPosterior,
)
from prunus.testing import check_posterior

RIGHT: list[tuple[type[Posterior], dict[str, Any]]] = [
    (GaussianPosterior, {}),
    (GaussianPosterior, {"noise": 0.01, "learned_noise": True, "keep": "snr"}),
    (HardConcretePosterior, {}),
    (TruncatedLogNormalPosterior, {}),
    (ReducedLogNormalPosterior, {}),
    (DirichletPosterior, {}),
    (DirichletPosterior, {"scale": "capacity", "prior_concentration": 0.1, "kept_fraction": 0.4}),
    (DirichletPosterior, {"scale": "kept"}),
    (DirichletPosterior, {"scale": "units"}),
    (DirichletPosterior, {"scale": "none", "init_concentration": 0.7, "prior_concentration": 0.05}),
]


@pytest.mark.parametrize(("kind", "settings"), RIGHT, ids=lambda v: getattr(v, "__name__", str(v)))
def test_every_posterior_passes(kind: type[Posterior], settings: dict[str, Any]) -> None:
    state = torch.random.get_rng_state()
    check_posterior(kind, **settings)
    assert torch.equal(state, torch.random.get_rng_state())


def wrong(**answers: Any) -> type[GaussianPosterior]:
    """A Gaussian posterior with learned noise, some of whose answers are others."""
    body = {**answers, "__qualname__": "Wrong"}

    def __init__(self: Any, units: int) -> None:
        GaussianPosterior.__init__(self, units, noise=0.01, learned_noise=True, keep="snr")

    return type("Wrong", (GaussianPosterior,), {"__init__": __init__, **body})


def standard(q: GaussianPosterior, n: int) -> Tensor:
    return torch.randn(n, q.units)


RIGHT_SCORE, RIGHT_KEPT = GaussianPosterior.score, GaussianPosterior.kept
RIGHT_COMPLEXITY = GaussianPosterior.complexity


def within(q: GaussianPosterior, reach: float) -> tuple[Tensor, Tensor]:
    return (q.mean() - reach * q.std()).detach(), (q.mean() + reach * q.std()).detach()


WRONG = {
    "a reversed score": (
        {"score": lambda q: -RIGHT_SCORE(q)},
        "nothing needs begins with a score of -1 and ends with -0.2.*higher must mean keep: the score is upside down",
    ),
    "a negated complexity": (
        {"complexity": lambda q: -RIGHT_COMPLEXITY(q)},
        "descending complexity() makes no unit smaller or noisier: its sign is turned",
    ),
    "a complexity that rewards noise without bound": (
        {"complexity": lambda q: -q.log_sigma.sum() + 0 * q.mu.sum()},
        "falls without bound as log_sigma goes to 100: it rewards noise",
    ),
    "noise that is taken for need": (
        {
            "std": lambda q: q.log_sigma.clamp(-10, 10).exp(),
            "complexity": lambda q: 0.5 * torch.log1p(q.std() ** -2).sum(),
        },
        "upside down, or takes noise for need",
    ),
    "kept() keeps nothing": (
        {"kept": lambda q: torch.zeros(q.units, dtype=torch.bool)},
        "kept() keeps nothing, not even units that the loss needs",
    ),
    "kept() keeps everything": (
        {"kept": lambda q: torch.ones(q.units, dtype=torch.bool)},
        "kept() keeps everything, units that nothing needs and units that do harm",
    ),
    "kept() is turned": ({"kept": lambda q: ~RIGHT_KEPT(q)}, "kept() lets go of units that the loss needs"),
    "kept() disagrees with score()": (
        {"kept": lambda q: torch.arange(q.units) != 4},
        "kept() disagrees with score(): it keeps a unit of score",
    ),
    "kept() is no bool": ({"kept": lambda q: RIGHT_KEPT(q).float()}, "kept() is float32 [8], it must be bool [8]"),
    "keep_probability() disagrees with score()": (
        {"comparable_draws": lambda q, n: -GaussianPosterior.comparable_draws(q, n)},
        "keep_probability() disagrees with score(): useless units reach",
    ),
    "a gradient that does not reach a parameter": (
        {"rsample": lambda q, n: q.mean().detach() + q.std() * standard(q, n)},
        "the gradient of the draws does not reach mu: it is detached",
    ),
    "a gradient that misses one unit": (
        {"rsample": lambda q, n: torch.where(torch.arange(8) == 3, 1.0, q.mean()) + q.std() * standard(q, n)},
        "does not reach mu (elements [3])",
    ),
    "no gradient at all": (
        {"rsample": lambda q, n: (q.mean() + q.std() * standard(q, n)).detach()},
        "rsample() is not differentiable",
    ),
    "a complexity without a gradient": (
        {"complexity": lambda q: RIGHT_COMPLEXITY(q).detach()},
        "the gradient of the complexity reaches no parameter of some units",
    ),
    "a complexity that overflows": (
        {"complexity": lambda q: 0.5 * torch.log1p((q.mu / q.log_sigma.exp()).square()).sum()},
        "is not finite where log_sigma is 100: keep it within a range",
    ),
    "a complexity per unit": (
        {"complexity": lambda q: 0.5 * torch.log1p((q.mu / q.std()).square())},
        "complexity() must be one float32 number",
    ),
    "scores of another shape": (
        {"score": lambda q: RIGHT_SCORE(q)[:, None]},
        "score() is float32 [8, 1], it must be float32 [8]",
    ),
    "scores of another dtype": ({"score": lambda q: RIGHT_SCORE(q).double()}, "score() is float64 [8]"),
    "scores that carry a gradient": ({"score": lambda q: q.second_moment().sqrt()}, "score() carries a gradient"),
    "scores that draw": ({"score": lambda q: q.rsample(1)[0].detach()}, "score() is another when asked again"),
    "draws that torch's seed does not decide": (
        {"rsample": lambda q, n: q.mean() + q.std() * torch.from_numpy(np.random.randn(n, q.units)).float()},
        "rsample() depends on something else than torch's seed",
    ),
    "draws that do not vary": ({"rsample": lambda q, n: q.mean().expand(n, -1)}, "it must draw"),
    "draws of another shape": (
        {"rsample": lambda q, n: (q.mean() + q.std() * standard(q, n)).T},
        "it must be float32 [512, 8]",
    ),
    "a mean on another scale": ({"mean": lambda q: 10 * q.mu}, "mean() lies outside of what rsample() draws"),
    "an interval that is too narrow": (
        {"interval": lambda q, level: within(q, 0.5)},
        "too narrow, or on another scale",
    ),
    "an interval that is too wide": (
        {"interval": lambda q, level: within(q, 9.0)},
        "too wide",
    ),
    "an interval upside down": (
        {"interval": lambda q, level: GaussianPosterior.interval(q, level)[::-1]},
        "lower end above the upper",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(what: str) -> None:
    answers, sentence = WRONG[what]
    with pytest.raises(AssertionError) as told:
        check_posterior(wrong(**answers))
    pieces = [re.escape(piece) for piece in sentence.split(".*")]
    assert re.search(".*".join(pieces), str(told.value)), told.value
    assert "Wrong" in str(told.value)


def test_what_is_no_posterior_is_refused() -> None:
    with pytest.raises(AssertionError, match="Linear makes a Linear, which is no"):
        check_posterior(nn.Linear, out_features=2)  # type: ignore[arg-type]
    check_posterior(wrong())
