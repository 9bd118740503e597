"""Prunus: make trained PyTorch networks physically smaller by learning a probability distribution over what to keep."""

from typing import TYPE_CHECKING

from prunus import moved  # noqa: F401 - importing it lets old addresses be found
from prunus.names import look_up as __getattr__  # noqa: F401 - names are imported when they are asked for
from prunus.names import public as __dir__  # noqa: F401

if TYPE_CHECKING:
    from prunus.data.batches import Splits
    from prunus.data.datasets import DataSource
    from prunus.data.evaluation import Evaluation, evaluate
    from prunus.files.stagefile import Checkpoint
    from prunus.formats.artifact import load, load_masks, save
    from prunus.formats.export import export
    from prunus.formats.pretrained import save_pretrained
    from prunus.gates.gate import attach
    from prunus.graph.custom import register_operation
    from prunus.graph.trace import trace
    from prunus.keyvalues.merge import merge_key_values
    from prunus.layers.attention import separate_attention_
    from prunus.layers.inputs import SelectInputs
    from prunus.layers.recurrence import join_recurrence_, separate_recurrence_
    from prunus.learning.fit import fit
    from prunus.measure.speed import Comparison
    from prunus.measure.speed import compare as benchmark
    from prunus.methods.dirichlet import DirichletPruning
    from prunus.methods.dpp import DynamicProbabilisticPruning
    from prunus.methods.rbp import RecursiveBayesianPruning
    from prunus.pipeline.compress import compress
    from prunus.pipeline.deprecated import fit_masks, sparsify
    from prunus.pipeline.prune import Result, prune
    from prunus.pipeline.run import run
    from prunus.pipeline.settings import RunSettings
    from prunus.pipeline.streamed import prune_streamed
    from prunus.plan.allocation import Allocation, allocate, select
    from prunus.plan.budget import Budget
    from prunus.plan.cost import count_cost
    from prunus.plan.plan import Plan
    from prunus.proof.apply import apply_
    from prunus.recovery.batchnorm import reestimate_batch_norm, reestimate_if_better
    from prunus.recovery.config import FinetuneConfig
    from prunus.recovery.finetuning import finetune
    from prunus.refit.config import RepairConfig
    from prunus.refit.repair import Repaired, repair
    from prunus.reports.html import report
    from prunus.sparse.choose import condense_where_faster_
    from prunus.sparse.layers import condense_, densify_
    from prunus.surgery.optimizer import carry_optimizer
    from prunus.vocabulary.trim import trim_vocabulary

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "Budget",
    "Checkpoint",
    "Comparison",
    "DataSource",
    "DirichletPruning",
    "DynamicProbabilisticPruning",
    "Evaluation",
    "FinetuneConfig",
    "Plan",
    "RecursiveBayesianPruning",
    "RepairConfig",
    "Repaired",
    "Result",
    "RunSettings",
    "SelectInputs",
    "Splits",
    "__version__",
    "allocate",
    "apply_",
    "attach",
    "benchmark",
    "carry_optimizer",
    "compress",
    "condense_",
    "condense_where_faster_",
    "count_cost",
    "densify_",
    "evaluate",
    "export",
    "finetune",
    "fit",
    "fit_masks",
    "join_recurrence_",
    "load",
    "load_masks",
    "merge_key_values",
    "prune",
    "prune_streamed",
    "reestimate_batch_norm",
    "reestimate_if_better",
    "register_operation",
    "repair",
    "report",
    "run",
    "save",
    "save_pretrained",
    "select",
    "separate_attention_",
    "separate_recurrence_",
    "sparsify",
    "trace",
    "trim_vocabulary",
]
