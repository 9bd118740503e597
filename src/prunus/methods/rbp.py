"""Recursive Bayesian pruning: Gaussian noise on each unit, learned layer by layer, given what is gone before it.

Idea
    A multiplicative noise N(mu, eps^2) on each unit tells whether it is needed: what is redundant ends with tiny noise
    (mean and spread), and goes. The noise of a layer is learned given the layers before it as they are *after* pruning,
    because what they lost changes what this layer's units are worth. Zhou, Zhang, Wang and Tian, "Accelerate CNN via
    Recursive Bayesian Pruning", ICCV 2019 (arXiv 1812.00353).

What is the paper's and what is ours
    From the paper's readable parts: channel noise as the indicator, tiny noise = redundant, a Markov chain over layers,
    a sparsity-inducing Dirac-like prior, recursion at no extra cost. Its equations were not available to us. Prior,
    regulariser, rule and schedule below are a derivation that has these properties, not the authors' text.

Objective of stage l (minimised, per example)
    loss(net(x; theta*_<l, theta_l), y) + beta * w(t) / N * sum_j 1/2 log(1 + mu_j^2 / eps^2)
    with theta* the folded, pruned stages before l and w a ramp from 0 to 1. The prior is N(0, lambda_j) with lambda_j
    at its type-II maximum likelihood given theta*_<l; beta = 1 is the evidence lower bound. With N large that hardly
    prunes: where nobody says how much goes, 1 / N is replaced by a share of what the units are worth to the loss
    (`complexity_per="information"`, the default; `learning.strength`), and beta is a multiple of it.

Decision
    A unit goes if sqrt(mu^2 + eps^2) <= 3 eps: no budget, no threshold to tune. With a budget the counts come from the
    allocation, and the noise only says which.

Settings that matter
    beta (more = smaller), epochs, train_weights (the layers from the writer on adapt while the noise is learned).
    `complexity_per="unit"` is the sum above as it stands; `"position"`, for fewer MACs in convolutions: the term of
    unit j times the positions of an example at which it is gated; `"root"`, the root of it, lies between.
    `simultaneous=True` learns all layers' noise at once: the ablation the paper argues against.

Known failures
    With `learned_noise` redundant units can grow their noise instead of shrinking their mean, and separation is poorer.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunus.methods.base import StagedMethod
from prunus.posteriors.gaussian import GaussianPosterior, Noise, Threshold


@dataclass(frozen=True)
class RecursiveBayesianPruning(StagedMethod, name="rbp"):
    """Configuration of recursive Bayesian pruning; see the module's text for what matters.

    Attributes:
        noise: eps, the standard deviation of every multiplier.
        learned_noise: learn the standard deviations as well.
        threshold: a unit goes if its root mean square is at most this many eps.
    """

    noise: Noise = 0.05
    learned_noise: bool = False
    threshold: Threshold = 3.0

    def posterior(self, units: int) -> GaussianPosterior:
        """A fresh Gaussian posterior: means of 1, standard deviations of eps."""
        return GaussianPosterior(units, noise=self.noise, learned_noise=self.learned_noise, threshold=self.threshold)
