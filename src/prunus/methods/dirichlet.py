"""Dirichlet pruning: a variational Dirichlet over each layer's units, weights frozen, one pass over the data.

Idea
    A probability vector s on the simplex multiplies the units of a group. Its posterior Dir(phi) is learned by
    variational inference in the trained, frozen network; units with a large posterior mean are kept. Adamczewski and
    Park, "Dirichlet Pruning for Neural Network Compression", AISTATS 2021 (arXiv 2011.05985).

Objective (minimised, per example)
    E_q[ loss(net(x; s), y) ] + beta * w(t) / N * sum over groups of KL( Dir(phi) || Dir(alpha_0) )
    with N training examples and a warm-up w from 0 to 1. beta = 1 is the evidence lower bound.

When to use
    A trained network, its data and one epoch to spend. Adds one number per unit and nothing else.

Settings that matter
    scale, init_concentration (the noise: the relative standard deviation of an average multiplier is about
    1 / sqrt(phi)), beta and prior_concentration. docs/dirichlet-defaults.md lists what was tried.

Departures from the paper and its released code
    The multipliers sit at the readers' inputs, after normalisation, because batch norm cancels a scale that precedes
    it (`placement="writer"` and `bn_mode="train"` reproduce the released order). They never exceed 1, because a
    simplex scaled by K inflates what is kept, and their sum falls while they are learned (`scale="capacity"`), so
    that a unit is judged in the company of half-removed others. phi is the exponential of its parameter. The KL is
    taken of the concentrations; in the released code its weight is about 6e-9. The loss is averaged over draws;
    `loss_reduction="loss_of_mean"` averages the outputs first, as released. One draw per example lowers the variance.
    `DirichletPruning.as_released()` gathers the released settings.

Known failures
    With the point estimate and a small beta a trained network gives the means little reason to move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from prunus.methods.base import PosteriorMethod, ramp
from prunus.posteriors.base import Posterior
from prunus.posteriors.dirichlet import Concentration, DirichletPosterior, Scale
from prunus.runtime.ranges import Count, Fraction, Natural, NonNegative, Positive, Share


@dataclass(frozen=True)
class DirichletPruning(PosteriorMethod, name="dirichlet"):
    """Configuration of Dirichlet pruning; see the module's text for what matters.

    Attributes:
        estimator: `mc` draws from the posterior, `point` plugs in its mean.
        prior_concentration: alpha_0 > 0; below 1 favours few units, above 1 equal ones.
        init_concentration: phi at the start; large means little noise.
        beta: factor of the KL; 1 is the evidence lower bound, `auto` is N / 200 for N examples, within [1, 100]:
            stronger than the bound, as served ResNet-20 best, but not so strong that few examples drown in it.
        warmup: fraction of the learning over which the KL's weight rises from 0.
        epochs: passes over the data (each group's own passes if not `joint`).
        min_steps: optimiser steps that are taken at least, in more passes if the data are few: a logarithmic parameter
            moves by about lr per step and must get from where it starts to where it belongs.
        samples: forward passes per batch, each with fresh draws.
        lr: Adam's step for rho = log(phi): about the largest relative change of phi per step.
        scale: `capacity`, `kept`, `max`, `units` or `none`, see `DirichletPosterior`.
        kept_fraction: for `capacity`: the share of each group's strength that is left at the end of the learning;
            for `kept`: the fraction of each group that is at full strength.
        anneal: for `capacity`: fraction of the learning over which the capacity falls from 1 to `kept_fraction`.
        joint: learn all groups at once, or one at a time with the others left alone.
        draws: one draw per example or per batch.
        placement: `reader` (exact) or `writer` (before normalisation, as released).
        bn_mode: batch norm in `eval` mode, or in `train` mode as released.
        loss_reduction: `mean_loss` over samples (the bound), or `loss_of_mean` outputs (as released).
    """

    finds_spread: ClassVar[bool] = True
    renamed: ClassVar[Mapping[str, str]] = {**PosteriorMethod.renamed, "kl_weight": "beta"}

    estimator: Literal["mc", "point"] = "mc"
    prior_concentration: Positive = 0.1
    init_concentration: Concentration = 10.0
    beta: NonNegative | Literal["auto"] = "auto"
    warmup: Fraction = 0.5
    epochs: Count = 1
    min_steps: Natural = 200
    samples: Count = 1
    lr: Positive = 0.05
    scale: Scale = "capacity"
    kept_fraction: Share = 0.4
    anneal: Fraction = 0.7
    joint: bool = True
    draws: Literal["example", "batch"] = "example"
    placement: Literal["reader", "writer"] = "reader"
    bn_mode: Literal["eval", "train"] = "eval"
    loss_reduction: Literal["mean_loss", "loss_of_mean"] = "mean_loss"

    @classmethod
    def as_released(cls) -> DirichletPruning:
        """The settings of the authors' public VGG code: before batch norm, no scale, practically no KL, one layer at a
        time, one draw per batch, outputs averaged over draws."""
        return cls(
            estimator="mc",
            prior_concentration=0.05,
            init_concentration=0.718,
            beta=0.0,
            min_steps=0,
            samples=2,
            scale="none",
            joint=False,
            draws="batch",
            placement="writer",
            bn_mode="train",
            loss_reduction="loss_of_mean",
        )

    def posterior(self, units: int) -> DirichletPosterior:
        """A fresh Dirichlet posterior for a group of `units` units."""
        return DirichletPosterior(
            units,
            init_concentration=self.init_concentration,
            prior_concentration=self.prior_concentration,
            scale=self.scale,
            kept_fraction=self.kept_fraction,
        )

    def anneal_(self, posterior: Posterior, progress: float) -> None:
        """Lower the capacity linearly from 1 to `kept_fraction`, see `anneal`."""
        if isinstance(posterior, DirichletPosterior):
            posterior.capacity = 1 - (1 - self.kept_fraction) * ramp(progress, self.anneal)

    def beta_at(self, progress: float, num_data: int) -> float:
        """beta times the linear warm-up at `progress` in [0, 1]."""
        strength = min(100.0, max(1.0, num_data / 200)) if self.beta == "auto" else self.beta
        return strength * ramp(progress, self.warmup)
