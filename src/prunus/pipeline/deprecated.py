"""Doors of earlier releases, kept for one more: each calls the one door and warns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from prunus.data.batches import Splits, as_batches
from prunus.errors import ConfigError
from prunus.graph.grouping import Graph
from prunus.graph.trace import trace
from prunus.learning.findings import LearnedMasks
from prunus.learning.problem import Problem
from prunus.methods.base import MaskMethod
from prunus.pipeline.solve import solve
from prunus.plan.request import requested
from prunus.proof.verification import Verification
from prunus.runtime.entry import entry
from prunus.runtime.fields import as_seed
from prunus.runtime.precision import Precision
from prunus.runtime.training import BatchSource, LossFunction


@dataclass(frozen=True, kw_only=True)
class Masked(LearnedMasks):
    """What `fit_masks` returned: the network along with what was learned.

    Attributes:
        model: a copy of the given one, trained, with zeros where nothing is kept, or without the filters not kept.
        proof: that filters were removed as they were masked; None for masks inside weights.
    """

    model: nn.Module
    proof: Verification | None = None


@entry()
def fit_masks(
    model: nn.Module,
    layers: Sequence[str],
    method: MaskMethod,
    batches: BatchSource,
    loss_fn: LossFunction,
    *,
    graph: Graph | None = None,
    judge: BatchSource | None = None,
    seed: int = 0,
    precision: Precision = "auto",
    progress: bool = True,
) -> Masked:
    """Learn which k of n stay in each of the named layers: `prunus.prune(..., target={layer: pattern})` as it was.

    Args:
        model: the network; not touched.
        layers: names of linear and convolution layers.
        method: pattern, schedule, learning rates.
        batches: what is learned from; the first of them is what the model is analysed on.
        loss_fn: mean loss of a batch.
        graph: no longer needed.
        judge: what drawn masks are compared on; `Splits(batches, judge)` now.
        seed: of everything random.
        precision: as for `fit`.
        progress: show a bar where there is a terminal.

    Raises:
        PruneError: one of its kinds.

    Warns:
        DeprecationWarning: always.
    """
    now = "prune(model, x, method=..., target={layer: pattern}, data=..., loss_fn=...)"
    warnings.warn(f"fit_masks(...) goes with the next release: write {now}", DeprecationWarning, stacklevel=3)
    twice = sorted({n for n in layers if list(layers).count(n) > 1})
    if isinstance(layers, str) or twice or not layers:
        what = f"{', '.join(twice)} named twice" if twice else f"{layers!r} is no list of layers"
        raise ConfigError("layers", what, "give a list of names, each once")
    target = dict.fromkeys(layers, method.pattern)
    request = requested(target, None, method=method.name, takes=method.targets, optional=False)
    example = as_batches(batches, model).first()[0]
    data = batches if judge is None else Splits(batches, judge)
    problem = Problem(
        model, example, trace(model, example) if graph is None else graph, request, data, loss_fn,
        seed=as_seed(seed), precision=precision, progress=progress,
    )  # fmt: skip
    result = solve(method, problem)
    found = result.findings
    assert isinstance(found, LearnedMasks)
    return Masked(**vars(found), model=result.model, proof=None if result.plan.patterns else result.verification)
