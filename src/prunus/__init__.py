"""Prunus: make trained PyTorch networks physically smaller by learning a probability distribution over what to keep."""

from prunus import moved  # noqa: F401 - importing it lets old addresses be found
from prunus.export.artifact import load, load_masks, save
from prunus.export.pretrained import save_pretrained
from prunus.files.stagefile import Checkpoint
from prunus.gates.gate import attach
from prunus.graph.custom import register_operation
from prunus.graph.trace import trace
from prunus.layers.attention import separate_attention_
from prunus.layers.inputs import SelectInputs
from prunus.layers.recurrence import join_recurrence_, separate_recurrence_
from prunus.learning.fit import fit
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.dpp import DynamicProbabilisticPruning
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.pipeline.compress import compress
from prunus.pipeline.deprecated import fit_masks, sparsify
from prunus.pipeline.prune import Result, prune
from prunus.pipeline.settings import RunSettings
from prunus.plan.allocation import Allocation, allocate, select
from prunus.plan.budget import Budget
from prunus.plan.cost import count_cost
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_
from prunus.recovery.batchnorm import reestimate_batch_norm, reestimate_if_better
from prunus.refit.config import RepairConfig
from prunus.refit.repair import Repaired, repair
from prunus.reports.html import report
from prunus.sparse.choose import condense_where_faster_
from prunus.sparse.layers import condense_, densify_
from prunus.surgery.optimizer import carry_optimizer

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "Budget",
    "Checkpoint",
    "DirichletPruning",
    "DynamicProbabilisticPruning",
    "Plan",
    "RecursiveBayesianPruning",
    "RepairConfig",
    "Repaired",
    "Result",
    "RunSettings",
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
    "repair",
    "report",
    "save",
    "save_pretrained",
    "select",
    "separate_attention_",
    "separate_recurrence_",
    "sparsify",
    "trace",
]
