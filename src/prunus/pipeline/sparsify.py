"""From a trained network and its data to a folder with one that keeps exactly k of n inside its weights."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.data.datasets import Batches, DataSource, each
from prunus.data.evaluation import Evaluation, evaluate, metrics_of
from prunus.data.losses import on_main_output
from prunus.errors import ConfigError, MissingDependencyError
from prunus.export.artifact import artifact_files
from prunus.export.int8 import int8_bytes
from prunus.export.run import RunFolder, commit_or_rescue, prepare_run
from prunus.files.atomic import staging
from prunus.graph.trace import trace
from prunus.layers.submodules import Ignored
from prunus.masks.activations import quantized_inputs
from prunus.masks.file import LayerMask
from prunus.masks.filters import check_filters, plan_of_filters, sole_writers
from prunus.masks.layers import layer_of
from prunus.masks.maskable import maskable_layers
from prunus.masks.patterns import Pattern
from prunus.measure.speed import compare
from prunus.methods.dpp import DynamicProbabilisticPruning
from prunus.pipeline.deprecated import Masked, fit_masks
from prunus.plan.plan import Plan
from prunus.proof.weightmasks import masks_hold, plan_patterns, with_masks
from prunus.report.figures import draw_masks
from prunus.runtime.copies import copied
from prunus.runtime.entry import entry
from prunus.runtime.fields import as_seed, check_kind
from prunus.runtime.precision import to_device
from prunus.runtime.processes import accelerator
from prunus.runtime.progress import Say
from prunus.runtime.timing import NOTICEABLE
from prunus.sparse.choose import condense_where_faster_


@dataclass(frozen=True)
class Sparsified:
    """What `sparsify` made.

    Attributes:
        model: the network with zeros where nothing is kept; with a filter pattern, without those filters.
        masked: masks, logits, history.
        summary: accuracies, losses, sizes and settings as plain numbers, as written to `summary.json`.
        directory: the folder with `summary.json`, `plan.json`, `artifact/`, `figures/` and, with a pattern inside
            weights and inputs on grids, `model_int8.onnx`; None if there is no `out`, or on other ranks than 0.
        saved: the same, to add more to the result.
    """

    model: nn.Module
    masked: Masked
    summary: Mapping[str, Any]
    directory: Path | None
    saved: RunFolder | None = None


@entry()
def sparsify(
    model: nn.Module,
    data: DataSource,
    *,
    method: DynamicProbabilisticPruning,
    layers: Sequence[str] | None = None,
    ignored_layers: Sequence[Ignored] = (),
    batch_size: int = 64,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
    say: Say = lambda _: None,
) -> Sparsified:
    """Learn which k of n stay, train the survivors, count exactly, save, measure.

    Whether `out` can be written is found out first. The result is on the disk before it is tested, timed and drawn.

    Args:
        model: the trained network; not touched.
        data: its data; masks are compared on the validation split, the test split is read once, at the end.
        method: pattern, schedule, bits.
        layers: names of the layers; None takes those of `maskable_layers`.
        ignored_layers: modules, module types or name globs to leave; not together with `layers`.
        batch_size: of the training.
        out: folder to write.
        seed: for everything random.
        progress: show progress bars where there is a terminal.
        say: receives a line of text at every step.

    Raises:
        PruneError: one of its kinds; the model is as it was, and `out` holds what was there before, or the whole new
            result, if `say` was told so.
    """
    check_kind("data", data, DataSource, "DataSource(name, train, validation, test, classes) of prunus.datasets")
    check_kind("method", method, DynamicProbabilisticPruning, "DynamicProbabilisticPruning(pattern='2:4')")
    seed = as_seed(seed)
    if layers is not None and ignored_layers:
        raise ConfigError(
            "ignored_layers", "they choose among all layers, and layers are named", "leave one of them out"
        )
    if out is not None:
        with accelerator():  # starts the process group, if there are several
            prepare_run(out, model, data.example_inputs, say)
    graph = trace(model, data.example_inputs)
    by_filter = Pattern.parse(method.pattern).granularity == "filter"
    names = list(layers) if layers is not None else maskable_layers(model, ignored_layers)
    if by_filter:
        names = [n for n in names if n in sole_writers(graph)] if layers is None else names
        check_filters(graph, names)
    plan = plan_patterns(graph, model, dict.fromkeys(names, method.pattern), method)
    say(plan.explain())
    with accelerator() as processes:  # starts the process group that the whole run shares, if there are several
        rank, world = processes.process_index, processes.num_processes
    judged = {"dense": evaluate(model, data.validation, loss_fn=data.loss_fn)}
    say(f"dense: {judged['dense']} on {len(data.validation)} validation examples")
    batches = Batches(data.train, batch_size, shuffle=True, seed=seed, augment=data.augment, rank=rank, world=world)
    judge = Batches(data.validation, 250)
    masked = fit_masks(
        model, names, method, batches, on_main_output(data.loss_fn),
        graph=graph, judge=judge, seed=seed, progress=progress,
    )  # fmt: skip
    with quantized_inputs(masked.model, masked.inputs):
        judged["masked"] = evaluate(masked.model, data.validation, loss_fn=data.loss_fn)
    say(f"{method.pattern} in {len(names)} layers: {judged['masked']}")
    if by_filter:
        plan = plan_of_filters(graph, masked.masks, method.pattern, method.name)
        say(plan.explain())
    else:
        plan = with_masks(plan, masked.masks)
    small = masked.model
    proof = _proof(masked, plan, data.example_inputs)
    say(f"proof: the network is the masked one to {proof['max_error']:.1e} (relative)")
    scales = {n: q.scale for n, q in masked.inputs.items()}
    inside = {n: LayerMask(method.pattern, m, method.bits, scales.get(n)) for n, m in masked.masks.items()}
    packed = {} if by_filter else inside
    summary = _summary(model, data, method, masked, inside, plan, judged, seed) | {"proof": proof}
    saved = None
    if out is not None and rank == 0:
        inputs = data.example_inputs
        files = artifact_files(small, plan, metrics=metrics_of(judged), example_inputs=inputs, masks=packed)
        saved = commit_or_rescue(out, files, summary, say)
        say(f"saved in {saved.path}")
    with nullcontext() if saved is None else saved.standing():
        judged["dense_test"] = evaluate(model, data.test, loss_fn=data.loss_fn)
        with quantized_inputs(small, masked.inputs):
            judged["test"] = evaluate(small, data.test, loss_fn=data.loss_fn)
        summary = _summary(model, data, method, masked, inside, plan, judged, seed) | {"proof": proof}
        if saved is not None:
            saved.add_metrics(plan, metrics_of(judged), packed)
            saved.add_summary(summary)
            _describe(saved, small, masked, packed, data, say)
        summary |= _speed(model, small, packed, data, say)
        if saved is not None:
            saved.add_summary(summary)
    directory = None if saved is None or out is None else Path(out)
    return Sparsified(small, masked, summary, directory, saved)


def _speed(
    model: nn.Module, small: nn.Module, masks: Mapping[str, LayerMask], data: DataSource, say: Say
) -> dict[str, Any]:
    """Time of the network with condensed layers, where they are faster, beside the dense one's."""
    fast = copied(small)
    ratios = condense_where_faster_(fast, masks, data.example_inputs) if masks else {}
    compared = compare(model, fast, data.example_inputs, modes=("eager",))
    (times,) = compared.modes
    if times.before is not None and times.after is not None:
        took = sum(r is not None and r < NOTICEABLE for r in ratios.values())
        layers = f"{took} of {len(masks)} masked layers run faster condensed" if masks else "without the filters"
        pair = " -> ".join(f"{t.median:.3f} ({t.low:.3f} .. {t.high:.3f})" for t in (times.before, times.after))
        say(f"{layers}; a pass, batch {compared.batch_size}: {pair} ms")
    # Advice on widths is for smaller layers, not for zeros inside them.
    speed = {k: v for k, v in compared.to_dict().items() if k != "warnings"}
    return {"speed": speed, "condensed_time_ratio": ratios}


def _proof(masked: Masked, plan: Plan, example_inputs: Any) -> dict[str, Any]:
    """That nothing but the kept weights counts; of filters that they were removed as they were masked."""
    if masked.proof is not None:
        return {"max_error": masked.proof.max_error, "rewritten": masked.proof.rewritten, "outside_of_masks": 0}
    error, outside = masks_hold(masked.model, plan, example_inputs)
    return {"max_error": error, "rewritten": False, "outside_of_masks": outside}


def _summary(
    model: nn.Module,
    data: DataSource,
    method: DynamicProbabilisticPruning,
    masked: Masked,
    inside: Mapping[str, LayerMask],
    plan: Plan,
    judged: Mapping[str, Evaluation],
    seed: int,
) -> dict[str, Any]:
    weights = {n: layer_of(model, n).weight.numel() for n in inside}
    stored = {n: m.stored_bytes(weights[n] // m.mask.numel()) for n, m in inside.items()}
    last = masked.history[-1] if masked.history else None
    return {
        "model": type(model).__name__,
        "data": data.name,
        "method": method.name,
        "settings": repr(method),
        "seed": seed,
        "accuracy": {name: found.accuracy for name, found in judged.items()},
        "loss": {name: found.loss for name, found in judged.items()},
        "before": vars(plan.before),
        "after": vars(plan.after),
        "layers": {
            n: {
                "weights": weights[n],
                "kept": int((masked.model.get_parameter(f"{n}.weight") != 0).sum()),
                "density": masked.layouts[n].density,
                "dense_bytes": 4 * weights[n],
                "stored_bytes": stored[n],
                "confidence": None if last is None else last.confidence[n],
                "diversity": None if last is None else last.diversity[n],
                "flips": None if last is None else last.flips[n],
                "entropy": None if last is None else last.entropy[n],
                "inclusion": None if last is None else last.inclusion[n],
            }
            for n in inside
        },
        "loss_of_draws": masked.sampled_loss,
        "loss_of_fixed": masked.fixed_loss,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def _describe(
    saved: RunFolder, model: nn.Module, masked: Masked, inside: Mapping[str, LayerMask], data: DataSource, say: Say
) -> None:
    """Add the 8-bit ONNX file and the pictures."""
    if inside and all(m.bits is not None and m.input_scale is not None for m in inside.values()):
        try:
            device = next(model.parameters()).device
            images = to_device(data.validation.normalise(each(data.validation.inputs, lambda t: t[:64])), device)
            with staging(saved.path) as scratch:
                file, error = int8_bytes(model, inside, images, scratch)
            saved.add("model_int8.onnx", file)
            say(f"8-bit ONNX agrees with the model on its grids: mean relative difference {error:.1e}")
        except MissingDependencyError as missing:
            say(f"no 8-bit ONNX: {missing.what}; {missing.fix}")
    elif masked.inputs:
        say("no 8-bit ONNX: it is written for patterns inside weights that lie on grids")
    try:
        saved.add("figures", draw_masks(masked))
    except MissingDependencyError as error:
        say(f"no figures: {error.what}; {error.fix}")
