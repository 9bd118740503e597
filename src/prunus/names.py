"""Where each public name is defined. It is imported when it is first asked for: `prunus --help` needs no torch."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder
from typing import Any

PLACES: dict[str, str] = {
    "Allocation": "plan.allocation",
    "Budget": "plan.budget",
    "Checkpoint": "files.stagefile",
    "Comparison": "measure.speed",
    "DataSource": "data.datasets",
    "DirichletPruning": "methods.dirichlet",
    "DynamicProbabilisticPruning": "methods.dpp",
    "Evaluation": "data.evaluation",
    "FinetuneConfig": "recovery.config",
    "Plan": "plan.plan",
    "RecursiveBayesianPruning": "methods.rbp",
    "RepairConfig": "refit.config",
    "Repaired": "refit.repair",
    "Result": "pipeline.prune",
    "RunSettings": "pipeline.settings",
    "SelectInputs": "layers.inputs",
    "Splits": "data.batches",
    "allocate": "plan.allocation",
    "apply_": "proof.apply",
    "attach": "gates.gate",
    "benchmark": "measure.speed:compare",
    "carry_optimizer": "surgery.optimizer",
    "compress": "pipeline.compress",
    "condense_": "sparse.layers",
    "condense_where_faster_": "sparse.choose",
    "count_cost": "plan.cost",
    "densify_": "sparse.layers",
    "evaluate": "data.evaluation",
    "export": "formats.export",
    "finetune": "recovery.finetuning",
    "fit": "learning.fit",
    "fit_masks": "pipeline.deprecated",
    "join_recurrence_": "layers.recurrence",
    "load": "formats.artifact",
    "load_masks": "formats.artifact",
    "merge_key_values": "keyvalues.merge",
    "prune": "pipeline.prune",
    "prune_streamed": "pipeline.streamed",
    "reestimate_batch_norm": "recovery.batchnorm",
    "reestimate_if_better": "recovery.batchnorm",
    "register_operation": "graph.custom",
    "repair": "refit.repair",
    "report": "reports.html",
    "run": "pipeline.run",
    "save": "formats.artifact",
    "save_pretrained": "formats.pretrained",
    "select": "plan.allocation",
    "separate_attention_": "layers.attention",
    "separate_recurrence_": "layers.recurrence",
    "sparsify": "pipeline.deprecated",
    "trace": "graph.trace",
    "trim_vocabulary": "vocabulary.trim",
}
"""Public name -> the module that defines it, and the name that it has there if that is another one."""


def look_up(name: str) -> Any:
    """What `prunus.NAME` is: a public name, or a room. Raises AttributeError if it is neither."""
    package = sys.modules["prunus"]
    if name in PLACES:
        place, _, there = PLACES[name].partition(":")
        value = getattr(importlib.import_module(f"prunus.{place}"), there or name)
        setattr(package, name, value)
        return value
    if PathFinder.find_spec(name, list(package.__path__)) is None:
        raise AttributeError(f"module 'prunus' has no attribute {name!r}")
    return importlib.import_module(f"prunus.{name}")


def public() -> list[str]:
    """What `dir(prunus)` lists: the public names."""
    return sorted([*PLACES, "__version__"])
