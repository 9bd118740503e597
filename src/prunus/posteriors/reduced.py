"""Bayesian model reduction on truncated log-normal multipliers: would a model without the unit have more evidence?"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor
from torch.special import log_ndtr

from prunus.posteriors.lognormal import HIGH, LOW, TruncatedLogNormalPosterior
from prunus.runtime.fields import check_arguments
from prunus.runtime.ranges import Range

Smallness = Annotated[float, Range(above=math.exp(LOW), below=1)]
"""A multiplier as good as none."""


def _log_mass(first: Tensor, last: Tensor) -> Tensor:
    """log(Phi(last) - Phi(first)), first < last; above 0 by the mirror image, where Phi has no digits left."""
    upper = first > 0
    more, less = torch.where(upper, -first, last), torch.where(upper, -last, first)
    whole = log_ndtr(more)
    return whole + torch.log1p(-torch.exp(log_ndtr(less) - whole))


def evidence_gain(mu: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Change of the log evidence when theta may be no larger than `largest`, in nats, elementwise in float64.

    The evidence under another prior is that under the first times the posterior's mean of the ratio of the priors. Both
    are uniform in log theta, on [-20, 0] and on [-20, log largest]: what is left is the mass below, over the share of
    the interval. It is exact where q is the posterior, and an estimate where q approximates it.

    Args:
        mu: [K], within `lognormal.LOCATION`.
        sigma: [K], exp of a number within `lognormal.LOG_SIGMA`.
        largest: of the multipliers that the reduced prior allows.

    Reference:
        Wright, Igel and Selvan, "BMRS: Bayesian Model Reduction for Structured Pruning", NeurIPS 2024; the formula is
        Bayes' rule and was not copied from there.
    """
    low, high, border = ((end - mu) / sigma for end in (LOW, HIGH, math.log(largest)))
    return _log_mass(low, border) - _log_mass(low, high) + math.log((HIGH - LOW) / (math.log(largest) - LOW))


class ReducedLogNormalPosterior(TruncatedLogNormalPosterior):
    """`TruncatedLogNormalPosterior` whose units go where a model without them would have at least as much evidence.

    Args:
        units: number of units K.
        largest: multipliers up to this are as good as none, in (exp(-20), 1).

    Raises:
        ConfigError: a setting out of its range.

    Example:
        >>> ReducedLogNormalPosterior(2).kept().tolist()
        [True, True]
    """

    def __init__(
        self, units: int, *, largest: Smallness = 2.0**-8, init_mu: float = 0.0, init_log_sigma: float = -5.0
    ) -> None:
        super().__init__(units, init_mu=init_mu, init_log_sigma=init_log_sigma)
        check_arguments(ReducedLogNormalPosterior.__init__, largest=largest)
        self.largest = largest

    def evidence_gain(self) -> Tensor:
        """Log evidence gained by doing without each unit, nats, fp32 [K]; see the function."""
        with torch.no_grad():
            return evidence_gain(*self._location_and_scale(), self.largest).float()

    def score(self) -> Tensor:
        """Log evidence lost without each unit, nats, fp32 [K]."""
        return -self.evidence_gain()

    def kept(self) -> Tensor:
        """Units without which the model has less evidence, bool [K]."""
        return self.score() > 0
