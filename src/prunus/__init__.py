"""Prunus: make trained PyTorch networks physically smaller by learning a probability distribution over what to keep."""

from prunus.allocation import Allocation, allocate, select
from prunus.apply import apply_
from prunus.attention import separate_attention_
from prunus.batchnorm import reestimate_batch_norm, reestimate_if_better
from prunus.budget import Budget
from prunus.checkpoint import load, load_masks, save
from prunus.compress import compress
from prunus.cost import count_cost
from prunus.fit import fit
from prunus.fit_masks import fit_masks
from prunus.gate import attach
from prunus.graph.custom import register_operation
from prunus.graph.trace import trace
from prunus.inputs import SelectInputs
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.dpp import DynamicProbabilisticPruning
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.optimizer import carry_optimizer
from prunus.packing import condense_where_faster_
from prunus.pipeline import Result, prune
from prunus.plan import Plan
from prunus.pretrained import save_pretrained
from prunus.recurrence import join_recurrence_, separate_recurrence_
from prunus.sparse.layers import condense_, densify_
from prunus.sparsify import sparsify

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "Budget",
    "DirichletPruning",
    "DynamicProbabilisticPruning",
    "Plan",
    "RecursiveBayesianPruning",
    "Result",
    "SelectInputs",
    "__version__",
    "allocate",
    "apply_",
    "attach",
    "carry_optimizer",
    "compress",
    "condense_",
    "condense_where_faster_",
    "count_cost",
    "densify_",
    "fit",
    "fit_masks",
    "join_recurrence_",
    "load",
    "load_masks",
    "prune",
    "reestimate_batch_norm",
    "reestimate_if_better",
    "register_operation",
    "save",
    "save_pretrained",
    "select",
    "separate_attention_",
    "separate_recurrence_",
    "sparsify",
    "trace",
]
