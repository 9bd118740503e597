"""Gaussian multipliers under a prior whose variance follows: the Dirac-like posterior, and learned noise."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from prunus.posteriors.base import DecidingPosterior, check_level
from prunus.runtime.fields import check_arguments
from prunus.runtime.ranges import Count, Range

Keep = Literal["tiny", "snr"]
Noise = Annotated[float, Range(above=0, most=0.3)]
Threshold = Annotated[float, Range(above=1)]
LOG_NOISE = (-10.0, math.log(0.3))
"""Range of a learned log standard deviation: above it a unit could hide from the complexity in its own noise."""


def ard_complexity(mean: Tensor, std: Tensor) -> Tensor:
    """sum_j 1/2 log(1 + mean_j^2 / std_j^2) in nats, fp32 scalar.

    It is the KL from N(mean, std^2) to N(0, lambda) at its minimum over lambda, lambda = mean^2 + std^2.

    Args:
        mean: [K].
        std: positive, [K] or a scalar.
    """
    return 0.5 * torch.log1p((mean / std).square()).sum()


class GaussianPosterior(DecidingPosterior):
    """q(z) = N(mu, sigma^2) per unit; prior N(0, lambda) with lambda at its type-II maximum likelihood.

    With a fixed small sigma = eps the posterior is close to a Dirac at mu, and the complexity is a log-sum penalty
    that is flat for mu of order 1 and a spike of width eps at 0: units end in one of the two. With a learned sigma only
    the ratio mu / sigma counts (the variational information bottleneck).

    Args:
        units: number of units K, at least 1.
        noise: sigma at the start (and for good, unless learned), in (0, 0.3].
        learned_noise: learn log sigma, within LOG_NOISE.
        keep: `tiny` keeps a unit whose root mean square sqrt(mu^2 + sigma^2) exceeds `threshold`; `snr` one whose
            |mu| exceeds sigma.
        threshold: in units of `noise`; 3 by default.

    Raises:
        ConfigError: a setting out of its range.

    Reference:
        Zhou et al., "Accelerate CNN via Recursive Bayesian Pruning" (ICCV 2019) for the idea of a Dirac-like noise;
        the formulas are our derivation. Dai et al., "Compressing Neural Networks using the Variational Information
        Bottleneck" (ICML 2018) for the learned noise.
    """

    def __init__(
        self,
        units: Count,
        *,
        noise: Noise = 0.05,
        learned_noise: bool = False,
        keep: Keep = "tiny",
        threshold: Threshold = 3.0,
    ) -> None:
        super().__init__()
        check_arguments(
            GaussianPosterior.__init__,
            units=units,
            noise=noise,
            learned_noise=learned_noise,
            keep=keep,
            threshold=threshold,
        )
        self.units, self.noise, self.keep, self.threshold = units, noise, keep, threshold
        self.learned_noise = learned_noise
        self.mu = nn.Parameter(torch.ones(units, dtype=torch.float32))
        self.log_sigma = nn.Parameter(
            torch.full((units,), math.log(noise), dtype=torch.float32), requires_grad=learned_noise
        )

    def std(self) -> Tensor:
        """sigma, fp32 [K]."""
        return self.log_sigma.float().clamp(*LOG_NOISE).exp()

    def rsample(self, n: int) -> Tensor:
        """mu + sigma * standard normal, fp32 [n, K]."""
        mu = self.mu.float()
        return mu + self.std() * torch.randn(n, self.units, device=mu.device, dtype=mu.dtype)

    def mean(self) -> Tensor:
        """mu, fp32 [K]."""
        return self.mu.float()

    def second_moment(self) -> Tensor:
        """mu^2 + sigma^2, fp32 [K]."""
        return self.mu.float().square() + self.std().square()

    def complexity(self) -> Tensor:
        """sum_j 1/2 log(1 + mu_j^2 / sigma_j^2) in nats, see `ard_complexity`."""
        return ard_complexity(self.mu.float(), self.std())

    def score(self) -> Tensor:
        """Root mean square of each multiplier, fp32 [K]."""
        return self.second_moment().sqrt().detach()

    def kept(self) -> Tensor:
        """Which units the posterior itself would keep, bool [K]."""
        with torch.no_grad():
            if self.keep == "snr":
                return self.mu.abs() > self.std()
            return self.second_moment().sqrt() > self.threshold * self.noise

    def tiny_probability(self) -> Tensor:
        """P(|z| < threshold * noise) of each unit, fp32 [K]: the same decision as a probability."""
        with torch.no_grad():
            limit, mu, sigma = self.threshold * self.noise, self.mu.float(), self.std()
            upper, lower = (limit - mu) / sigma, (-limit - mu) / sigma
            # In the upper tail the difference of two numbers next to 1 would be lost.
            mirrored = torch.special.ndtr(-lower) - torch.special.ndtr(-upper)
            return torch.where(mu > 0, torch.special.ndtr(upper) - torch.special.ndtr(lower), mirrored).clamp(0, 1)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """mu -+ the quantile of the normal times sigma.

        Raises:
            ConfigError: `level` is not between 0 and 1.
        """
        check_level(level)
        reach = float(torch.special.ndtri(torch.tensor(0.5 + level / 2, dtype=torch.float64, device="cpu")))
        with torch.no_grad():
            return self.mu - reach * self.std(), self.mu + reach * self.std()

    def comparable_draws(self, n: int) -> Tensor:
        """Signs don't matter: a unit counts by its size."""
        return self.rsample(n).abs()
