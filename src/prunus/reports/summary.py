"""One summary for every run, as plain numbers and texts; keys of what a run does not have are absent."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from functools import singledispatch
from typing import Any, Protocol

import torch
from torch import nn

from prunus.data.datasets import DataSource
from prunus.data.evaluation import Evaluation
from prunus.learning.findings import Findings, LearnedMasks, Scores
from prunus.learning.routes import Load
from prunus.learning.stored import stored_masks
from prunus.masks.layers import layer_of
from prunus.methods.base import Method
from prunus.plan.plan import Plan
from prunus.proof.verification import Verification
from prunus.refit.told import Refit

METRICS = {m: m for m in ("confidence", "diversity", "flips", "entropy")} | {"inclusion": "keep_probability"}
"""Of the masks, after the last epoch of drawing: key in the summary -> attribute."""

STAGE = {"score": "importance"}
"""Attributes of a stage that have another key in the summary."""


class Outcome(Protocol):
    """What `prune` made, as far as a summary looks at it."""

    @property
    def model(self) -> nn.Module:
        """The smaller network."""

    @property
    def plan(self) -> Plan:
        """What was kept."""

    @property
    def findings(self) -> Findings:
        """What the method found out."""

    @property
    def verification(self) -> Verification:
        """What was proven."""

    @property
    def refits(self) -> tuple[Refit, ...]:
        """What repair did."""

    @property
    def loads(self) -> tuple[Load, ...]:
        """Tokens of experts, before and after."""


def summary_of(
    dense: nn.Module, data: DataSource, method: Method, result: Outcome, judged: Mapping[str, Evaluation], seed: int
) -> dict[str, Any]:
    """What a run was asked, found and proved.

    Args:
        dense: the network that was given.
        data: what it was made with; name and classes are told.
        method: with its settings.
        result: what `prune` made.
        judged: accuracy, or agreement with the dense network, and loss by stage.
        seed: of everything random.
    """
    plan, proof = result.plan, result.verification
    return {
        "model": plan.model,
        "data": data.name,
        **({"classes": list(data.classes)} if data.classes else {}),
        "method": plan.method,
        "settings": repr(method),
        "asked": plan.asked,
        "seed": seed,
        **_scores(judged),
        "loss": {name: found.loss for name, found in judged.items()},
        "before": vars(plan.before),
        "after": vars(plan.after),
        **({} if plan.patterns else {"kept": {g.name: [len(g.kept), g.units] for g in plan.groups}}),
        **({"repair": [vars(r) | {"won_back": r.won_back} for r in result.refits]} if result.refits else {}),
        **({"loads": [vars(load) for load in result.loads]} if result.loads else {}),
        **_told(result.findings, method, dense, result),
        "proof": {
            "max_error": None if math.isnan(proof.max_error) else proof.max_error,
            "tolerance": proof.tolerance,
            "exact": proof.exact,
            "rewritten": proof.rewritten,
        },
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def _scores(judged: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Under the metric's name, and of another than accuracy and agreement what it is."""
    first = next(iter(judged.values()), None)
    if first is None or first.metric == "loss":
        return {} if first is None else {"metric": {"name": "loss", "better": "lower", "unit": ""}}
    found = {first.measure: {name: each.score for name, each in judged.items()}}
    told = {"metric": {"name": first.metric, "better": first.better, "unit": first.unit}}
    return found if first.metric == "accuracy" else found | told


@singledispatch
def _told(findings: Findings, method: Method, dense: nn.Module, result: Outcome) -> dict[str, Any]:
    """What the findings of one kind have to tell besides."""
    return {}


@_told.register
def _of_units(findings: Scores, method: Method, dense: nn.Module, result: Outcome) -> dict[str, Any]:
    return {
        "stages": [
            {STAGE.get(k, k): v for k, v in vars(s).items() if k != "keep_probability"} for s in findings.stages
        ],
        "undecided": {g.name: len(g.undecided) for g in result.plan.groups if g.undecided},
    }


@_told.register
def _of_masks(findings: LearnedMasks, method: Method, dense: nn.Module, result: Outcome) -> dict[str, Any]:
    last = findings.history[-1] if findings.history else None
    layers: dict[str, dict[str, Any]] = {}
    for name, mask in stored_masks(method, findings, result.plan).items():
        weights = layer_of(dense, name).weight.numel()
        layers[name] = {
            "weights": weights,
            "kept": int((result.model.get_parameter(f"{name}.weight") != 0).sum()),
            "density": findings.layouts[name].density,
            "dense_bytes": 4 * weights,
            "stored_bytes": mask.stored_bytes(weights // mask.mask.numel()),
            **{key: None if last is None else getattr(last, metric)[name] for key, metric in METRICS.items()},
        }
    return {"layers": layers, "loss_of_draws": findings.sampled_loss, "loss_of_fixed": findings.fixed_loss}
