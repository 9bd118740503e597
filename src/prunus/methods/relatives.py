"""The Bayesian relatives of recursive pruning, all layers at once, through the same stages: for honest comparison.

Idea
    A multiplicative noise per unit, learned together with the weights under a prior that prefers silence. They differ
    in the noise and in what counts as redundant: small signal-to-noise ratio (SBP, VIB), a gate that is shut (L0), or
    a model without the unit that has more evidence (BMRS).

Objective (minimised, per example)
    E_q[ loss(net(x; z), y) ] + beta * w(t) / N * sum over units of the posterior's complexity

    (with `complexity_per="position"`, as the information bottleneck has it where there is a target, times the positions
    of an example at which the unit is gated; without a target 1 / N is replaced by what the units are worth, see
    `learning.strength`). For beta / N the paper on L0 writes lambda; the one on the information
    bottleneck has a gamma for every layer in its place.

When to use
    As baselines. Each can also be run layer by layer with `simultaneous=False`.

Departures from the papers
    Trained networks are pruned, not networks trained from scratch; gates sit at the readers, so that the information
    bottleneck counts the positions that a convolution's reader sees (after pooling).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunus.methods.base import BoundPer, StagedMethod
from prunus.posteriors.concrete import HardConcretePosterior
from prunus.posteriors.gaussian import GaussianPosterior, Noise
from prunus.posteriors.lognormal import TruncatedLogNormalPosterior
from prunus.posteriors.reduced import ReducedLogNormalPosterior, Smallness


@dataclass(frozen=True)
class StructuredBayesianPruning(StagedMethod, name="sbp"):
    """Truncated log-normal noise; a unit goes if its signal-to-noise ratio is below 1.

    Reference:
        Neklyudov et al., "Structured Bayesian Pruning via Log-Normal Multiplicative Noise", NeurIPS 2017.
    """

    simultaneous: bool = True

    def posterior(self, units: int) -> TruncatedLogNormalPosterior:
        """A fresh truncated log-normal posterior."""
        return TruncatedLogNormalPosterior(units)


@dataclass(frozen=True)
class BayesianModelReduction(StagedMethod, name="bmrs"):
    """The noise of `StructuredBayesianPruning`; a unit goes if the model has at least as much evidence without it.

    Attributes:
        largest: multipliers up to this are as good as none.

    Reference:
        Wright, Igel and Selvan, "BMRS: Bayesian Model Reduction for Structured Pruning", NeurIPS 2024.
    """

    simultaneous: bool = True
    largest: Smallness = 2.0**-8

    def posterior(self, units: int) -> ReducedLogNormalPosterior:
        """A fresh truncated log-normal posterior that decides by evidence."""
        return ReducedLogNormalPosterior(units, largest=self.largest)


@dataclass(frozen=True)
class VariationalInformationBottleneck(StagedMethod, name="vib"):
    """Gaussian noise with a learned standard deviation; a unit goes if it is mostly noise.

    Reference:
        Dai et al., "Compressing Neural Networks using the Variational Information Bottleneck", ICML 2018.
    """

    bound_per: ClassVar[BoundPer] = "position"  # each is a noisy channel of its own

    simultaneous: bool = True
    noise: Noise = 0.011

    def posterior(self, units: int) -> GaussianPosterior:
        """A fresh Gaussian posterior with learned noise."""
        return GaussianPosterior(units, noise=self.noise, learned_noise=True, keep="snr")


@dataclass(frozen=True)
class HardConcreteL0(StagedMethod, name="l0"):
    """Stretched and clipped concrete gates; the penalty is the expected number of open ones.

    Reference:
        Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018.
    """

    simultaneous: bool = True

    def posterior(self, units: int) -> HardConcretePosterior:
        """A fresh hard-concrete posterior, gates open."""
        return HardConcretePosterior(units)
