"""Doors of earlier releases, kept for one more: each calls the one door and warns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunus.data.batches import Splits, as_batches
from prunus.data.datasets import DataSource, first_of
from prunus.errors import ConfigError, MissingDependencyError
from prunus.files.atomic import StrPath
from prunus.formats.exports import Choice, add_exports
from prunus.formats.registry import EXPORTERS, Exportable
from prunus.formats.run import RunFolder
from prunus.graph.grouping import Graph
from prunus.graph.trace import trace
from prunus.layers.submodules import Ignored
from prunus.learning.findings import LearnedMasks
from prunus.learning.problem import Problem
from prunus.methods.base import MaskMethod
from prunus.pipeline.compress import compress
from prunus.pipeline.settings import RunSettings, silent
from prunus.pipeline.solve import solve
from prunus.plan.request import requested
from prunus.proof.verification import Verification
from prunus.runtime.entry import entry
from prunus.runtime.fields import as_seed, check_kind
from prunus.runtime.precision import Precision
from prunus.runtime.progress import Say
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


@dataclass(frozen=True)
class Sparsified:
    """What `sparsify` returned.

    Attributes:
        model: the network with zeros where nothing is kept; with a filter pattern, without those filters.
        masked: masks, logits, history.
        summary: as of `Compression`.
        directory: the folder; None if there is no `out`, or on other ranks than 0.
        saved: the same, to add more to the result.
    """

    model: nn.Module
    masked: Masked
    summary: Mapping[str, Any]
    directory: Path | None
    saved: RunFolder | None = None


def sparsify(
    model: nn.Module,
    data: DataSource,
    *,
    method: MaskMethod,
    layers: Sequence[str] | None = None,
    ignored_layers: Sequence[Ignored] = (),
    batch_size: int = 64,
    out: StrPath | None = None,
    seed: int = 0,
    progress: bool = True,
    say: Say = silent,
) -> Sparsified:
    """Learn which k of n stay, save, measure: `prunus.compress(..., method=..., target=pattern)` as it was.

    Args:
        model: the trained network; not touched.
        data: its data.
        method: pattern, schedule, bits.
        layers: names of the layers; None takes those of `maskable_layers`.
        ignored_layers: modules, module types or name globs to leave; not together with `layers`.
        batch_size: of the training.
        out: folder to write.
        seed: of everything random.
        progress: show bars where there is a terminal.
        say: receives a line of text at every step.

    Raises:
        PruneError: one of its kinds.

    Warns:
        DeprecationWarning: always.
    """
    now = "compress(model, data, method=..., target=pattern or {layer: pattern}, run=RunSettings(...))"
    warnings.warn(f"sparsify(...) goes with the next release: write {now}", DeprecationWarning, stacklevel=2)
    check_kind("method", method, MaskMethod, "DynamicProbabilisticPruning(pattern='2:4')")
    done = compress(
        model,
        data,
        method=method,
        target=None if layers is None else dict.fromkeys(layers, method.pattern),
        ignored_layers=ignored_layers,
        out=out,
        seed=seed,
        progress=progress,
        run=RunSettings(batch_size=batch_size, say=say),
    )
    result, found = done.result, done.result.masked
    assert found is not None
    if done.saved is not None:
        images = first_of(data.validation, 64)
        subject = Exportable(done.model, data.example_inputs, result.plan, done.masks, batch=images)
        asked = tuple(e for e in (EXPORTERS["int8"],) if e.suits(subject))
        failed = add_exports(done.saved, subject, Choice(asked, auto=False), say)
        if failed is not None and not isinstance(failed, MissingDependencyError):
            raise failed
    masked = Masked(**vars(found), model=done.model, proof=None if result.plan.patterns else result.verification)
    return Sparsified(done.model, masked, done.summary, done.directory, done.saved)
