"""Log-normal multipliers truncated to (0, 1], under a log-uniform prior: structured Bayesian pruning."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn
from torch.special import erfcx, ndtr, ndtri

from prunus.posteriors.base import DecidingPosterior, check_level
from prunus.posteriors.clamp import inward_clamp
from prunus.runtime.fields import check_arguments
from prunus.runtime.ranges import Count, Range

LOW, HIGH = -20.0, 0.0
"""Range of the logarithm of a multiplier."""
LOCATION = (2 * LOW - HIGH, 2 * HIGH - LOW)
"""Range of mu: a length of the interval to either side of it, where q is all but an exponential at that end."""
LOG_SIGMA = (-20.0, 5.0)
"""Range of log sigma: from a Dirac to (nearly) the prior."""
_TAIL = 30.0
"""From this many sigmas outside of the interval on, Mills' ratio is its asymptotic series."""
_REACH = 11.0
"""Quadrature leaves out what has less than exp(-_REACH^2 / 2) of the largest density."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def _from_nearest_end(mu: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The truncated normal seen from the end of the interval nearest to mu: end, direction inwards, alpha, width.

    With y = |x - end| / sigma in [0, width], the density is proportional to exp(-alpha y - y^2 / 2); alpha is how many
    sigmas mu lies outside (negative: inside). Nothing is ever subtracted from something of the same size.
    """
    upper = mu > (LOW + HIGH) / 2
    end = torch.where(upper, HIGH, LOW).to(mu)
    inwards = torch.where(upper, -1.0, 1.0).to(mu)
    return end, inwards, torch.where(upper, mu - HIGH, LOW - mu) / sigma, (HIGH - LOW) / sigma


def _mills(x: Tensor) -> Tensor:
    """(1 - Phi(x)) / phi(x), x >= 0."""
    return math.sqrt(math.pi / 2) * erfcx(x / math.sqrt(2))


def truncated_normal_kl(mu: Tensor, sigma: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) truncated to [-20, 0] || uniform on [-20, 0]) in nats, elementwise, in the inputs' dtype.

    For mu inside, with A, B the ends in standard units and Z = Phi(B) - Phi(A), it is
    log(B - A) - 1/2 log(2 pi e) - log Z - (A phi(A) - B phi(B)) / (2 Z). For mu outside the same divided by phi at the
    nearest end, in Mills' ratios; far outside, the ratio's series. Meant for float64.

    Args:
        mu: [K], within LOCATION.
        sigma: [K], exp of a number within LOG_SIGMA.

    Reference:
        Neklyudov et al., "Structured Bayesian Pruning via Log-Normal Multiplicative Noise", NeurIPS 2017; the form
        for the tails is ours.
    """
    _, _, alpha, width = _from_nearest_end(mu, sigma)
    # Every branch gets arguments that it can take: what is not chosen must not turn gradients into NaN.
    a = torch.where(alpha <= 0, alpha, 0.0)
    b = a + width
    z = ndtr(b) - ndtr(a)
    weighted = (a * (-a * a / 2).exp() - b * (-b * b / 2).exp()) / math.sqrt(2 * math.pi)
    inside = -0.5 * math.log(2 * math.pi) - z.log() - weighted / (2 * z)

    near = torch.where((alpha > 0) & (alpha <= _TAIL), alpha, 1.0)
    far = (-near * width - width * width / 2).exp()
    ratio = _mills(near) - far * _mills(near + width)
    outside = -ratio.log() + width * far / (2 * ratio) - near * ((1 - far) / ratio - near) / 2

    tail = torch.where(alpha > _TAIL, alpha, _TAIL)
    v = tail**-2
    series, slope = torch.ones_like(v), torch.zeros_like(v)
    term = torch.ones_like(v)
    for k in range(1, 9):
        # series = x Mills(x) = 1 - v + 3 v^2 - ..., slope = (1 - series) / v
        slope = slope + term * (2 * k - 1)
        term = -term * (2 * k - 1) * v
        series = series + term
    far_outside = tail.log() - series.log() - slope / (2 * series)

    chosen = torch.where(alpha <= 0, inside, torch.where(alpha <= _TAIL, outside, far_outside))
    return width.log() - 0.5 + chosen


def truncated_normal_quantile(u: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """The x with P(X <= x) = u under N(mu, sigma^2) truncated to [-20, 0], [n, K]; differentiable in mu and sigma.

    Inside by the normal's quantile function; outside by Newton's method on the logarithm of the upper tail, which is
    concave, so that it converges from its start. The gradient is that of the implicit function.

    Args:
        u: float64 [n, K] in (0, 1).
        mu: float64 [K], within LOCATION.
        sigma: float64 [K], exp of a number within LOG_SIGMA.
    """
    with torch.no_grad():
        end, inwards, alpha, width = _from_nearest_end(mu, sigma)
        u = torch.where(inwards > 0, u, 1 - u)  # mass between the nearest end and x
        inside = alpha <= 0
        y = torch.empty_like(u)
        y[:, inside] = _inside_quantile(u[:, inside], alpha[inside], width[inside])
        y[:, ~inside] = _outside_quantile(u[:, ~inside], alpha[~inside], width[~inside])
        y = torch.minimum(y.clamp_(min=0.0), width)

        x = end + inwards * sigma * y
        t = alpha + y
        near_share = (1 - u) * (y * (alpha + y / 2)).exp()
        far_share = u * ((t - alpha - width) * (t + alpha + width) / 2).exp()
        by_mu = 1 - near_share - far_share
        by_sigma = inwards * (t - near_share * alpha - far_share * (alpha + width))
    return x + by_mu * (mu - mu.detach()) + by_sigma * (sigma - sigma.detach())


def _inside_quantile(u: Tensor, alpha: Tensor, width: Tensor) -> Tensor:
    """Distance from the end in sigmas below which lies a share u of the mass; mu inside the interval, alpha <= 0."""
    below = ndtr(alpha)
    mass = below + u * (ndtr(alpha + width) - below)
    return ndtri(mass.clamp(1e-300, 1 - 2**-53)) - alpha


def _outside_quantile(u: Tensor, alpha: Tensor, width: Tensor) -> Tensor:
    """The same for mu outside, alpha > 0: Newton's method on the logarithm of the upper tail."""
    at_end = _mills(alpha)
    whole = alpha * width + width * width / 2 + (at_end / _mills(alpha + width)).log()
    wanted = -torch.log1p(u * torch.expm1(-whole))
    y = 2 * wanted / (alpha + (alpha * alpha + 2 * wanted).sqrt())
    for _ in range(6):
        ratio = _mills(alpha + y)
        y = (y - ratio * (alpha * y + y * y / 2 + (at_end / ratio).log() - wanted)).clamp(min=0.0)
    return y


class TruncatedLogNormalPosterior(DecidingPosterior):
    """q(log theta) = N(mu, sigma^2) truncated to [-20, 0] per unit; the prior is log-uniform on the same range.

    The multiplier never amplifies. The complexity pulls every unit towards the prior, where its signal drowns in its
    noise; a unit that the loss needs keeps a small sigma and a mu near or above 0.

    Args:
        units: number of units K, at least 1.
        init_mu: mu of every unit at the start, in [-20, 20].
        init_log_sigma: log sigma of every unit at the start, in [-20, 5].

    Raises:
        ConfigError: a setting out of its range.

    Example:
        >>> q = TruncatedLogNormalPosterior(4)
        >>> q.rsample(8).shape
        torch.Size([8, 4])
        >>> [round(m, 2) for m in q.mean().tolist()]
        [0.99, 0.99, 0.99, 0.99]

    Reference:
        Neklyudov et al., "Structured Bayesian Pruning via Log-Normal Multiplicative Noise", NeurIPS 2017.
    """

    def __init__(
        self,
        units: Count,
        *,
        init_mu: Annotated[float, Range(least=LOW, most=-LOW)] = 0.0,
        init_log_sigma: Annotated[float, Range(least=LOG_SIGMA[0], most=LOG_SIGMA[1])] = -5.0,
    ) -> None:
        super().__init__()
        check_arguments(
            TruncatedLogNormalPosterior.__init__, units=units, init_mu=init_mu, init_log_sigma=init_log_sigma
        )
        self.units = units
        self.mu = nn.Parameter(torch.full((units,), float(init_mu), dtype=torch.float32))
        self.log_sigma = nn.Parameter(torch.full((units,), float(init_log_sigma), dtype=torch.float32))

    def _location_and_scale(self) -> tuple[Tensor, Tensor]:
        """Mu and sigma within their ranges, float64 [K] each; a parameter outside can come back."""
        mu = inward_clamp(self.mu.double(), *LOCATION)
        return mu, inward_clamp(self.log_sigma.double(), *LOG_SIGMA).exp()

    def _log_draws(self, n: int) -> Tensor:
        u = torch.rand(n, self.units, dtype=torch.float64, device=self.mu.device)
        return truncated_normal_quantile(u.clamp(1e-16, 1 - 2**-53), *self._location_and_scale())

    def rsample(self, n: int) -> Tensor:
        """theta by the inverse of its distribution function, fp32 [n, K] in (0, 1]; differentiable."""
        return self._log_draws(n).exp().float()

    def _moments(self) -> tuple[Tensor, Tensor]:
        """E[theta] and Var[theta] / E[theta]^2, float64 [K] each.

        By Gauss-Legendre quadrature around the mode of q(log theta), relative to the mode: positive terms only. The
        closed form's E[theta^2] - E[theta]^2 has no digit left for a small sigma.
        """
        mu, sigma = self._location_and_scale()
        end, inwards, alpha, width = _from_nearest_end(mu, sigma)
        out, behind = torch.where(alpha > 0, alpha, 0.0), torch.where(alpha > 0, 0.0, -alpha)
        mode = torch.where(alpha > 0, end, mu)
        first = -behind.clamp(max=_REACH)
        last = torch.minimum(width - behind, _REACH**2 / (out + (out * out + _REACH**2).sqrt()))
        nodes, weights = (torch.as_tensor(x).to(mu)[:, None] for x in ((_NODES + 1) / 2, _WEIGHTS))
        z = first + (last - first) * nodes
        p = (weights.log() - out * z - z * z / 2).softmax(0)
        change = torch.expm1(inwards * sigma * z)
        average = (p * change).sum(0)
        relative = (p * (change - average).square()).sum(0) / (1 + average).square()
        return mode.exp() * (1 + average), relative

    def mean(self) -> Tensor:
        """E[theta], fp32 [K]."""
        return self._moments()[0].float()

    def second_moment(self) -> Tensor:
        """E[theta^2], fp32 [K]."""
        mean, relative = self._moments()
        return (mean.square() * (1 + relative)).float()

    def snr(self) -> Tensor:
        """E[theta] over the standard deviation of theta, fp32 [K]."""
        return self._moments()[1].rsqrt().float()

    def complexity(self) -> Tensor:
        """KL(q || prior) in nats, fp32 scalar, see `truncated_normal_kl`; evaluated in float64."""
        return truncated_normal_kl(*self._location_and_scale()).sum().float()

    def score(self) -> Tensor:
        """The signal-to-noise ratio of each multiplier, fp32 [K]."""
        with torch.no_grad():
            return self.snr()

    def kept(self) -> Tensor:
        """Units with at least as much signal as noise, bool [K]."""
        return self.score() >= 1

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Quantiles of theta at (1 - level) / 2 and (1 + level) / 2, fp32 [K] each.

        Raises:
            ConfigError: `level` is not between 0 and 1.
        """
        check_level(level)
        with torch.no_grad():
            mu, sigma = self._location_and_scale()
            ends = mu.new_tensor([[(1 - level) / 2], [(1 + level) / 2]])
            low, high = truncated_normal_quantile(ends, mu, sigma).exp().float()
            return low, high

    def comparable_draws(self, n: int) -> Tensor:
        """Logarithms: multipliers next to 1 would tie in fp32."""
        return self._log_draws(n).float()
