"""Prunus: make trained PyTorch networks physically smaller by learning a probability distribution over what to keep."""

from prunus.apply import apply_
from prunus.budget import Allocation, Budget, allocate, select
from prunus.checkpoint import load, save
from prunus.compress import compress
from prunus.cost import count_cost
from prunus.fit import fit
from prunus.gate import attach
from prunus.graph.trace import trace
from prunus.inputs import SelectInputs
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.pipeline import Result, prune
from prunus.plan import Plan

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "Budget",
    "DirichletPruning",
    "Plan",
    "RecursiveBayesianPruning",
    "Result",
    "SelectInputs",
    "__version__",
    "allocate",
    "apply_",
    "attach",
    "compress",
    "count_cost",
    "fit",
    "load",
    "prune",
    "save",
    "select",
    "trace",
]
