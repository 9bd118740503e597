"""The papers: one method, one file. None of them walks a graph."""

from prunus.methods.base import (
    METHODS,
    GradientCriterion,
    MaskMethod,
    Method,
    PosteriorMethod,
    RoutingCriterion,
    StagedMethod,
    WeightCriterion,
)
from prunus.methods.criteria import FPGM, L1, L2, BatchNormScale, Fisher, Random, Taylor
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.dpp import DynamicProbabilisticPruning
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.methods.registry import method_names, resolve
from prunus.methods.relatives import (
    BayesianModelReduction,
    HardConcreteL0,
    StructuredBayesianPruning,
    VariationalInformationBottleneck,
)
from prunus.methods.routing import RouterWeightedNorm, RoutingFrequency

__all__ = [
    "FPGM",
    "L1",
    "L2",
    "METHODS",
    "BatchNormScale",
    "BayesianModelReduction",
    "DirichletPruning",
    "DynamicProbabilisticPruning",
    "Fisher",
    "GradientCriterion",
    "HardConcreteL0",
    "MaskMethod",
    "Method",
    "PosteriorMethod",
    "Random",
    "RecursiveBayesianPruning",
    "RouterWeightedNorm",
    "RoutingCriterion",
    "RoutingFrequency",
    "StagedMethod",
    "StructuredBayesianPruning",
    "Taylor",
    "VariationalInformationBottleneck",
    "WeightCriterion",
    "method_names",
    "resolve",
]
