"""Hard-concrete gates: a continuous variable in [0, 1] that is exactly 0 or 1 with positive probability."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from prunus.posteriors.base import DecidingPosterior, check_level
from prunus.runtime.fields import check_arguments
from prunus.runtime.ranges import Count, Range, Share


class HardConcretePosterior(DecidingPosterior):
    """Gates z = min(1, max(0, s (zeta - gamma) + gamma)), s = sigmoid((logit(u) + log_alpha) / beta), u uniform.

    There is no prior: the complexity is the expected number of nonzero gates.

    Args:
        units: number of units K, at least 1.
        init_log_alpha: log_alpha of every unit at the start, in [-20, 20]; from log 11 = 2.4 on the gate without noise
            is 1 (for the default stretch).
        beta: temperature of the concrete distribution, in (0, 1].
        gamma: lower end of the stretched variable, below 0.
        zeta: upper end of the stretched variable, above 1.

    Raises:
        ConfigError: a setting out of its range.

    Example:
        >>> q = HardConcretePosterior(4)
        >>> q.rsample(8).shape
        torch.Size([8, 4])
        >>> q.mean().tolist()
        [1.0, 1.0, 1.0, 1.0]

    Reference:
        Louizos, Welling & Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018. They start
        at log_alpha near 0, in networks that are not trained yet.
    """

    def __init__(
        self,
        units: Count,
        *,
        init_log_alpha: Annotated[float, Range(least=-20, most=20)] = 2.5,
        beta: Share = 2 / 3,
        gamma: Annotated[float, Range(below=0)] = -0.1,
        zeta: Annotated[float, Range(above=1)] = 1.1,
    ) -> None:
        super().__init__()
        check_arguments(
            HardConcretePosterior.__init__,
            units=units,
            init_log_alpha=init_log_alpha,
            beta=beta,
            gamma=gamma,
            zeta=zeta,
        )
        self.units, self.beta, self.gamma, self.zeta = units, beta, gamma, zeta
        self.log_alpha = nn.Parameter(torch.full((units,), float(init_log_alpha), dtype=torch.float32))

    def _stretched(self, s: Tensor) -> Tensor:
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0.0, 1.0)

    def _logits(self, n: int) -> Tensor:
        """logit(u) + log_alpha, fp32 [n, K]: the draw before it is squashed, stretched and cut."""
        u = torch.rand(n, self.units, device=self.log_alpha.device, dtype=torch.float32).clamp(min=2**-25)
        return u.log() - torch.log1p(-u) + self.log_alpha.float()

    def rsample(self, n: int) -> Tensor:
        """Draws of the gates, fp32 [n, K] in [0, 1], zeros and ones among them; no gradient from those."""
        return self._stretched(torch.sigmoid(self._logits(n) / self.beta))

    def mean(self) -> Tensor:
        """The gate to use without noise, fp32 [K]: sigmoid(log_alpha), stretched and cut; not E[z]."""
        return self._stretched(torch.sigmoid(self.log_alpha.float()))

    def nonzero_probability(self) -> Tensor:
        """P(z > 0) = sigmoid(log_alpha - beta log(-gamma / zeta)), fp32 [K].

        Evaluated in float64: in fp32 the gradient is exactly 0 from log_alpha = 16 on.
        """
        return torch.sigmoid(self.log_alpha.double() - self.beta * math.log(-self.gamma / self.zeta)).float()

    def complexity(self) -> Tensor:
        """Expected number of nonzero gates, fp32 scalar: the L0 penalty in units, not a KL in nats."""
        return self.nonzero_probability().sum()

    def score(self) -> Tensor:
        """Probability that each gate is not zero, fp32 [K]."""
        return self.nonzero_probability().detach()

    def kept(self) -> Tensor:
        """Units whose gate without noise is not zero, bool [K]."""
        return self.mean().detach() > 0

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Quantiles of z at (1 - level) / 2 and (1 + level) / 2, fp32 [K] each; they may be exactly 0 or 1.

        Raises:
            ConfigError: `level` is not between 0 and 1.
        """
        check_level(level)
        reach = math.log1p(level) - math.log1p(-level)
        with torch.no_grad():
            logits = self.log_alpha.float() + self.log_alpha.new_tensor([[-reach], [reach]]).float()
            low, high = self._stretched(torch.sigmoid(logits / self.beta))
            return low, high

    def comparable_draws(self, n: int) -> Tensor:
        """Uncut draws: gates cut at 0 or 1 would tie."""
        return self._logits(n)
