"""The contract between a method and the rest: what it needs to see, and what it answers.

A method is a frozen dataclass that is its own configuration. There are three kinds, by what they look at:
weights alone (`WeightCriterion`), gradients of the loss with respect to gates held at one (`GradientCriterion`), and
posteriors over the gates that are learned (`PosteriorMethod`). Whatever the kind, the answer is one score per
unit, higher = keep, comparable between the groups of one model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from prunus.graph.groups import ChannelGroup
from prunus.posteriors.base import Posterior


@dataclass(frozen=True)
class Method(ABC):
    """Anything that can score the units of a group.

    Attributes:
        name: what it is called on the command line and in plans.
        cost_exponent: how the scores are compared between groups if the caller does not say: 0 ranks units by score,
            1 by score per cost saved, which suits scores that estimate a loss.
    """

    name: ClassVar[str]
    cost_exponent: ClassVar[float] = 0.0


@dataclass(frozen=True)
class WeightCriterion(Method):
    """Scores from the parameters alone: no data, no loss."""

    @abstractmethod
    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        """Score of each unit.

        Args:
            model: the dense network; read only.
            group: the group to score; its slots name the tensors.
            seed: for criteria that draw random numbers.

        Returns:
            fp32 tensor [K], higher = keep.
        """


@dataclass(frozen=True)
class GradientCriterion(Method):
    """Scores from per-example gradients with respect to gates held at one."""

    cost_exponent: ClassVar[float] = 1.0

    @abstractmethod
    def contribution(self, gradient: Tensor) -> Tensor:
        """What one batch adds to the running sum.

        Args:
            gradient: fp32 [B, K]; row n holds d loss_n / d gate at gate = 1, which is
                the sum over positions of activation x gradient (loss_n = the loss of example n alone).

        Returns:
            fp32 [K], to be summed over all batches.
        """

    @abstractmethod
    def finish(self, total: Tensor, num_examples: int) -> Tensor:
        """Turn the sum of contributions over `num_examples` examples into the score of each unit: fp32 [K]."""


@dataclass(frozen=True)
class PosteriorMethod(Method):
    """Learns q(z) over one multiplier per unit while the weights stay frozen."""

    cost_exponent: ClassVar[float] = 1.0

    estimator: Literal["mc", "point"]
    epochs: int
    samples: int
    lr: float
    joint: bool
    draws: Literal["example", "batch"]
    placement: Literal["reader", "writer"]
    bn_mode: Literal["eval", "train"]
    loss_reduction: Literal["mean_loss", "loss_of_mean"]

    @abstractmethod
    def posterior(self, units: int) -> Posterior:
        """A fresh posterior for a group of `units` units."""

    @abstractmethod
    def complexity_weight(self, progress: float) -> float:
        """Factor of KL / N at `progress` in [0, 1] of the learning (strength times warm-up)."""

    def anneal_(self, posterior: Posterior, progress: float) -> None:
        """Change what a posterior does at `progress` in [0, 1] of the learning; nothing by default."""
