"""Distributions over what to keep: one multiplier per unit, one file per family."""

from prunus.posteriors.base import DecidingPosterior, Posterior
from prunus.posteriors.clamp import inward_clamp
from prunus.posteriors.concrete import HardConcretePosterior
from prunus.posteriors.dirichlet import DirichletPosterior
from prunus.posteriors.gaussian import GaussianPosterior
from prunus.posteriors.lognormal import TruncatedLogNormalPosterior
from prunus.posteriors.reduced import ReducedLogNormalPosterior

__all__ = [
    "DecidingPosterior",
    "DirichletPosterior",
    "GaussianPosterior",
    "HardConcretePosterior",
    "Posterior",
    "ReducedLogNormalPosterior",
    "TruncatedLogNormalPosterior",
    "inward_clamp",
]
