"""The Dirichlet posterior: shares of a whole, on a scale of choice."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunus.posteriors.base import Posterior, check_level
from prunus.posteriors.clamp import inward_clamp
from prunus.runtime.fields import check_arguments
from prunus.runtime.ranges import Count, Positive, Range, Share

Scale = Literal["none", "units", "max", "kept", "capacity"]
CUT_AT_ONE = ("kept", "capacity")
FLOOR, CEILING = 1e-2, 1e4
"""Range of a concentration: below it fp32 Gamma draws underflow and their gradients are noise; above it there is no
noise left to learn from (1 % relative standard deviation)."""
Concentration = Annotated[float, Range(above=FLOOR, below=CEILING)]


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


def capacity_factor(means: Tensor, capacity: float) -> Tensor:
    """The factor c with sum_j min(1, c m_j) = capacity * K, fp32 scalar.

    Args:
        means: positive shares [K] that sum to 1.
        capacity: in (0, 1]; at 1 every term reaches 1.
    """
    ordered = means.sort(descending=True).values
    units = len(ordered)
    if capacity >= 1:
        return 1.0 / ordered[-1]
    full = torch.arange(units, device=means.device, dtype=means.dtype)
    rest = ordered.flip(0).cumsum(0).flip(0)
    factors = (capacity * units - full) / rest
    filled = (factors * ordered >= 1).sum().clamp(max=units - 1)
    return factors.gather(0, filled.view(1)).squeeze(0)


class DirichletPosterior(Posterior):
    """q(s) = Dir(phi) over the simplex, phi = exp(rho); the multipliers are s on a scale of choice.

    Its K numbers rho are the only parameters; phi is kept within [0.01, 10000]. A logarithmic parameter makes a step
    of the optimiser a *relative* change of phi, so that one pass over the data can tell units apart by orders of
    magnitude. What multiplies the units:

    - `none`: s itself, which sums to 1 (as released);
    - `units`: K s, so that the average multiplier is 1;
    - `max`: s over the largest posterior mean, so that the best unit's multiplier is 1 on average;
    - `kept`: min(1, s / t), t the (1 - kept_fraction) quantile of the posterior means. The better `kept_fraction` of
      the units are at or near 1, as they will be after pruning, and the others are attenuated and noisy, all at the
      same time: a unit is judged in the company of the half-removed others. Nothing is ever inflated.
    - `capacity`: min(1, c s) with c such that the mean multipliers min(1, c m_j) sum to `capacity` K, a share of the
      whole that the method lowers from 1 to `kept_fraction` while it learns. The network loses strength gradually,
      as it will when units go, and the units compete for what is left.

    The divisors are not differentiated.

    Args:
        units: number of units K, at least 1.
        init_concentration: phi of every unit at the start, in (0.01, 10000).
        prior_concentration: alpha_0 > 0 of the symmetric prior Dir(alpha_0, ..., alpha_0).
        scale: see above.
        kept_fraction: for `kept` and `capacity`, in (0, 1].

    Raises:
        ConfigError: a setting out of its range, or an unknown scale.

    Example:
        >>> q = DirichletPosterior(4, init_concentration=2.0)
        >>> q.rsample(8).shape
        torch.Size([8, 4])
        >>> [round(p, 2) for p in q.probabilities().tolist()]
        [0.25, 0.25, 0.25, 0.25]

    Reference:
        Adamczewski & Park, "Dirichlet Pruning for Neural Network Compression", AISTATS 2021. The scales `max` and
        `kept` and the logarithmic parameter are ours.
    """

    def __init__(
        self,
        units: Count,
        *,
        init_concentration: Concentration = 10.0,
        prior_concentration: Positive = 1.0,
        scale: Scale = "max",
        kept_fraction: Share = 0.5,
    ) -> None:
        super().__init__()
        check_arguments(
            DirichletPosterior.__init__,
            units=units,
            init_concentration=init_concentration,
            prior_concentration=prior_concentration,
            scale=scale,
            kept_fraction=kept_fraction,
        )
        self.units = units
        self.prior_concentration = prior_concentration
        self.scale: Scale = scale
        self.kept_fraction = kept_fraction
        self.capacity = 1.0
        self.rho = nn.Parameter(torch.full((units,), math.log(init_concentration), dtype=torch.float32))

    def concentration(self) -> Tensor:
        """phi, fp32 [K]."""
        return torch.exp(inward_clamp(self.rho.float(), math.log(FLOOR), math.log(CEILING)))

    def probabilities(self) -> Tensor:
        """Posterior mean on the simplex, phi / sum(phi), fp32 [K]."""
        phi = self.concentration()
        return phi / phi.sum()

    def factor(self) -> Tensor:
        """What draws on the simplex are multiplied by (before it is cut at 1), fp32 scalar, no gradient."""
        if self.scale == "units":
            return self.rho.new_tensor(float(self.units))
        if self.scale == "none":
            return self.rho.new_tensor(1.0)
        means = self.probabilities().detach()
        if self.scale == "capacity":
            return capacity_factor(means, self.capacity)
        return 1.0 / (means.max() if self.scale == "max" else torch.quantile(means, 1 - self.kept_fraction))

    def _scaled(self, s: Tensor) -> Tensor:
        scaled = s * self.factor()
        return scaled.clamp(max=1.0) if self.scale in CUT_AT_ONE else scaled

    def rsample(self, n: int) -> Tensor:
        """Draws s ~ Dir(phi) on the scale, fp32 [n, K]; implicit reparameterisation gradients."""
        return self._scaled(torch.distributions.Dirichlet(self.concentration(), validate_args=False).rsample((n,)))

    def mean(self) -> Tensor:
        """The posterior mean of s on the scale, fp32 [K] (the point estimate)."""
        return self._scaled(self.probabilities())

    def variance(self) -> Tensor:
        """Posterior variance of each multiplier, fp32 [K].

        m (1 - m) / (sum(phi) + 1) times the squared factor; for scales cut at 1 the exact variance of min(1, s / t),
        from the incomplete moments of the marginal Beta.
        """
        from scipy.special import betainc

        with torch.no_grad():
            m, factor = self.probabilities(), self.factor()
            if self.scale not in CUT_AT_ONE:
                return m * (1 - m) / (self.concentration().sum() + 1) * factor**2
            a, b = self._beta()
            c = float(factor)
            t = min(1.0, 1.0 / c)
            above = 1 - betainc(a, b, t)
            first = above + c * a / (a + b) * betainc(a + 1, b, t)
            second = above + c**2 * a * (a + 1) / ((a + b) * (a + b + 1)) * betainc(a + 2, b, t)
            return torch.from_numpy(np.maximum(second - first**2, 0.0)).float()

    def complexity(self) -> Tensor:
        """KL(Dir(phi) || Dir(alpha_0)) in nats, fp32 scalar; evaluated in float64."""
        phi = self.concentration()
        return dirichlet_kl(phi, torch.full_like(phi, self.prior_concentration)).float()

    def score(self) -> Tensor:
        """The concentrations phi, fp32 [K]: comparable between groups that start equal and are learned together.

        In the bound a unit's noise costs about H_j / (2 phi_j) (H_j: curvature of the loss in its multiplier) and, for
        alpha_0 < 1/2, the prior asks (1/2 - alpha_0) log phi_j per unit, whatever its group: the two balance at
        phi_j proportional to H_j, the expected loss of doing without the unit while the others are noisy too. Within
        a group the order is that of the posterior means.
        """
        return self.concentration().detach()

    def comparable_draws(self, n: int) -> Tensor:
        """Uncut draws: units cut at 1 would tie."""
        return torch.distributions.Dirichlet(self.concentration().cpu(), validate_args=False).sample((n,))

    def _beta(self) -> tuple[np.ndarray, np.ndarray]:
        phi = self.concentration().detach().double().cpu().numpy()
        return phi, np.maximum(phi.sum() - phi, 1e-12)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Central credible interval of each multiplier: quantiles of the marginal Beta(phi_j, sum(phi) - phi_j).

        Raises:
            ConfigError: `level` is not between 0 and 1.
        """
        check_level(level)
        from scipy.special import betaincinv

        a, b = self._beta()
        tail = (1 - level) / 2
        low, high = (torch.from_numpy(np.asarray(betaincinv(a, b, q))).float() for q in (tail, 1 - tail))
        factor = float(self.factor())
        low, high = low * factor, high * factor
        return (low.clamp(max=1.0), high.clamp(max=1.0)) if self.scale in CUT_AT_ONE else (low, high)
