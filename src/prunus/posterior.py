"""Posteriors over one multiplier per unit: pure mathematics, testable without a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.errors import ConfigError

Scale = Literal["none", "units", "max"]
SCALES = ("none", "units", "max")
FLOOR = 1e-2
"""Smallest concentration: below it fp32 Gamma draws underflow and their gradients are noise."""


class Posterior(nn.Module, ABC):
    """q(z) over the multipliers of one group's units.

    Attributes:
        units: number of units K.
    """

    units: int

    @abstractmethod
    def rsample(self, n: int) -> Tensor:
        """`n` independent draws of the multipliers, fp32 [n, K], differentiable in the posterior's parameters."""

    @abstractmethod
    def mean(self) -> Tensor:
        """The multipliers to use without noise, fp32 [K], on the scale of `rsample`."""

    @abstractmethod
    def complexity(self) -> Tensor:
        """KL(q || prior) in nats, fp32 scalar."""

    @abstractmethod
    def score(self) -> Tensor:
        """Importance of each unit [K], higher = keep, comparable between the groups of one model."""

    @abstractmethod
    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end [K] of the central credible interval of each multiplier, on the scale of `rsample`."""

    def keep_probability(self, k: int, *, draws: int = 4096, seed: int = 0) -> Tensor:
        """Probability under q that each unit is among the `k` largest, fp32 [K], by seeded Monte Carlo.

        Raises:
            ConfigError: `k` is not between 1 and K.
        """
        if not 1 <= k <= self.units:
            raise ConfigError("keep_probability", f"k = {k} is not between 1 and {self.units}", "give a kept count")
        hits = torch.zeros(self.units)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for start in range(0, draws, 512):
                z = self._draw(min(512, draws - start))
                hits += torch.zeros_like(z).scatter_(1, z.topk(k, dim=1).indices, 1.0).sum(0)
        return hits / draws

    def _draw(self, n: int) -> Tensor:
        return self.rsample(n).cpu()


def dirichlet_kl(concentration: Tensor, prior: Tensor) -> Tensor:
    """KL(Dir(concentration) || Dir(prior)) in nats, float64 scalar.

    Args:
        concentration: positive [K].
        prior: positive [K].

    Reference:
        Adamczewski & Park, Dirichlet pruning (AISTATS 2021); the closed form for two Dirichlets.
    """
    a, b = concentration.double(), prior.double()
    total = a.sum()
    return (
        torch.lgamma(total)
        - torch.lgamma(a).sum()
        - torch.lgamma(b.sum())
        + torch.lgamma(b).sum()
        + ((a - b) * (torch.digamma(a) - torch.digamma(total))).sum()
    )


class DirichletPosterior(Posterior):
    """q(s) = Dir(phi) over the simplex, phi = softplus(rho) + floor; the multipliers are s times a scale.

    Its K numbers rho are the only parameters. The scale is 1 (`none`, as released), K (`units`: the mean multiplier
    is 1) or one over the largest posterior mean (`max`: the best unit's multiplier is 1; not differentiated).

    Args:
        units: number of units K, at least 1.
        init_concentration: phi of every unit at the start.
        prior_concentration: alpha_0 of the symmetric prior Dir(alpha_0, ..., alpha_0).
        scale: see above.

    Raises:
        ConfigError: concentrations that are not positive, or an unknown scale.
    """

    def __init__(
        self,
        units: int,
        *,
        init_concentration: float = 10.0,
        prior_concentration: float = 1.0,
        scale: Scale = "max",
    ) -> None:
        super().__init__()
        if init_concentration <= FLOOR or prior_concentration <= 0:
            raise ConfigError(
                "DirichletPosterior",
                f"init_concentration {init_concentration} must exceed {FLOOR}, prior {prior_concentration} must exceed 0",
                "choose values such as 10 and 1",
            )
        if scale not in SCALES:
            raise ConfigError("DirichletPosterior", f"unknown scale {scale!r}", f"use one of {', '.join(SCALES)}")
        self.units = units
        self.prior_concentration = prior_concentration
        self.scale: Scale = scale
        start = torch.tensor(init_concentration - FLOOR, dtype=torch.float64)
        self.rho = nn.Parameter((start + torch.log(-torch.expm1(-start))).float().repeat(units))

    def concentration(self) -> Tensor:
        """phi, fp32 [K]."""
        return F.softplus(self.rho.float()) + FLOOR

    def probabilities(self) -> Tensor:
        """Posterior mean on the simplex, phi / sum(phi), fp32 [K]."""
        phi = self.concentration()
        return phi / phi.sum()

    def factor(self) -> Tensor:
        """What draws on the simplex are multiplied by, fp32 scalar."""
        if self.scale == "units":
            return self.rho.new_tensor(float(self.units))
        if self.scale == "max":
            return 1.0 / self.probabilities().detach().max()
        return self.rho.new_tensor(1.0)

    def rsample(self, n: int) -> Tensor:
        """Draws s ~ Dir(phi) times the scale, [n, K]; implicit reparameterisation gradients."""
        phi = self.concentration()
        return torch.distributions.Dirichlet(phi, validate_args=False).rsample((n,)) * self.factor()

    def mean(self) -> Tensor:
        """Posterior mean times the scale, [K] (the point estimate)."""
        return self.probabilities() * self.factor()

    def variance(self) -> Tensor:
        """Posterior variance of the multipliers, [K]: m (1 - m) / (sum(phi) + 1) times the squared scale."""
        m = self.probabilities()
        return m * (1 - m) / (self.concentration().sum() + 1) * self.factor() ** 2

    def complexity(self) -> Tensor:
        """KL(Dir(phi) || Dir(alpha_0)) in nats; evaluated in float64."""
        phi = self.concentration()
        return dirichlet_kl(phi, torch.full_like(phi, self.prior_concentration)).float()

    def score(self) -> Tensor:
        """Posterior mean relative to a uniform share, K m_j: 1 is an average unit of its group."""
        return (self.probabilities() * self.units).detach()

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central credible interval of each multiplier: quantiles of the marginal Beta(phi_j, sum(phi) - phi_j)."""
        phi = self.concentration().detach().double().cpu().numpy()
        rest = np.maximum(phi.sum() - phi, 1e-12)
        tail = (1 - level) / 2
        ends = [betaincinv(phi, rest, q) for q in (tail, 1 - tail)]
        factor = float(self.factor())
        low, high = (torch.from_numpy(np.asarray(e)).float() * factor for e in ends)
        return low, high
