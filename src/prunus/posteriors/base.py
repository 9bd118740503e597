"""What every posterior over one multiplier per unit answers: pure mathematics, testable without a model."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.posteriors.best import times_best
from prunus.runtime.processes import model_device
from prunus.runtime.seeds import seeded


def check_level(level: float) -> None:
    """Raise ConfigError if the level of an interval is not between 0 and 1."""
    if not 0 < level < 1:
        raise ConfigError("interval", f"level {level} is not between 0 and 1", "use for example 0.95")


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

    def keep_probability(
        self, k: int, *, draws: int = 4096, seed: int = 0, rows: npt.NDArray[np.int64] | None = None
    ) -> Tensor:
        """Probability under q that each unit is among the `k` largest, fp32 [K], by seeded Monte Carlo.

        With `rows` (row of each unit, [K]) among the k / R largest of its own row of R.

        That of one draw of the multipliers. How likely a learning anew keeps the unit is another question, whose
        answer is usually surer: `prunus.plan.keeping`.

        Raises:
            ConfigError: `k` is not between 1 and K.
        """
        if not 1 <= k <= self.units:
            raise ConfigError("keep_probability", f"k = {k} is not between 1 and {self.units}", "give a kept count")
        hits = torch.zeros(self.units, dtype=torch.float32, device="cpu")
        with torch.no_grad(), seeded(seed, model_device(self), alike=True):
            for start in range(0, draws, 512):
                hits += times_best(self.comparable_draws(min(512, draws - start)).cpu(), k, rows)
        return hits / draws

    def comparable_draws(self, n: int) -> Tensor:
        """`n` draws of what units are compared by, fp32 [n, K]: multipliers, unless signs, cuts or noise mislead."""
        return self.rsample(n)


class DecidingPosterior(Posterior):
    """A posterior with a rule of its own for what stays."""

    @abstractmethod
    def kept(self) -> Tensor:
        """Which units stay if nobody asks for a number, bool [K]; may be none or all."""
