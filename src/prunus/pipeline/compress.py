"""From a trained network and its data to a folder with a smaller, recovered, measured one."""

from __future__ import annotations

import math
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.data.datasets import Batches, DataSource
from prunus.data.evaluation import Evaluation, evaluate, metrics_of
from prunus.data.losses import on_main_output
from prunus.errors import ConfigError, MissingDependencyError, PruneError
from prunus.export.artifact import artifact_files
from prunus.export.run import RunFolder, commit_or_rescue, prepare_run
from prunus.files.stagefile import Checkpoint, is_stage_file
from prunus.layers.submodules import Ignored
from prunus.measure.speed import Comparison, check_modes, compare
from prunus.methods.base import Method
from prunus.methods.registry import resolve
from prunus.pipeline.prune import Result, prune
from prunus.plan.allocation import Allocation
from prunus.plan.request import Allow, requested
from prunus.recovery.batchnorm import reestimate_if_better
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.finetuning import check_settings, finetune
from prunus.report.figures import draw_stages
from prunus.runtime.copies import copied
from prunus.runtime.entry import entry
from prunus.runtime.fields import as_seed, check_kind
from prunus.runtime.processes import accelerator
from prunus.runtime.progress import Say


@dataclass(frozen=True)
class Compression:
    """What `compress` made.

    Attributes:
        model: the smaller, recovered model.
        result: plan, scores and proof.
        accuracy: top-1 in percent, by stage: `dense`, `one_shot`, `batch_norm`, `recovered` on the validation split,
            `dense_test` and `test` on the test split, which is read once, at the end.
        loss: the same of the mean loss (of a language model, nats per token).
        comparison: size and speed before and after, measured in one run.
        summary: everything above as plain numbers, as written to `summary.json`.
        directory: the folder, with `summary.json`, `plan.json` and `artifact/`; None if there is no `out`, or on
            other ranks than 0.
        saved: the same, to add more to the result.
    """

    model: nn.Module
    result: Result
    accuracy: Mapping[str, float]
    loss: Mapping[str, float]
    comparison: Comparison
    summary: Mapping[str, Any]
    directory: Path | None
    saved: RunFolder | None = None


@entry(unchanged=True)
def compress(
    model: nn.Module,
    data: DataSource,
    *,
    method: Method | str = "dirichlet",
    budget: str | None = None,
    pruning_ratio: float | None = None,
    ignored_layers: Sequence[Ignored] = (),
    head_dims: bool = False,
    inexact: bool = False,
    follow_branches: bool = False,
    own_class: bool = False,
    allocation: Allocation | None = None,
    recovery: FinetuneConfig | None = None,
    batch_size: int = 64,
    modes: Sequence[str] = ("eager", "onnx"),
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: bool = True,
    say: Say = lambda _: None,
) -> Compression:
    """Prune, re-estimate batch norm, fine-tune with distillation from the dense model, save, measure.

    Whether `out` can be written is found out first. The result is on the disk before it is tested, timed and drawn.

    Args:
        model: the trained network; not touched.
        data: its data; nothing is chosen on the test split.
        method: as for `prune`.
        budget: as for `prune`.
        pruning_ratio: as for `prune`.
        ignored_layers: as for `prune`.
        head_dims: as for `prune`.
        inexact: as for `prune`.
        follow_branches: as for `trace`.
        own_class: as for `prune`.
        allocation: as for `prune`.
        recovery: fine-tuning; None for none.
        batch_size: for learning the gates.
        modes: ways to run that are timed: `eager`, `compiled`, `onnx`.
        out: folder to write.
        seed: for everything random.
        resume: methods that work in stages go on from `out/stages.pt` if it is there.
        progress: show progress bars where there is a terminal.
        say: receives a line of text at every stage.

    Raises:
        PruneError: one of its kinds, before the work where it can be; the given model is as it was, and `out` holds
            what was there before (and the stages done so far, if the method works in stages), or the whole new result,
            if `say` was told so: the pruned network, where it is the recovery that failed.

    Warns:
        RuntimeWarning: a way to run that was timed takes longer than before, with what may help.
    """
    check_kind("data", data, DataSource, "DataSource(name, train, validation, test, classes) of prunus.datasets")
    seed, chosen = as_seed(seed), resolve(method)
    if budget is not None and pruning_ratio is not None:
        raise ConfigError("target", "give exactly one of budget, pruning_ratio", "budget='macs<=50%'")
    target = pruning_ratio if budget is None else budget
    requested(target, allocation, method=chosen.name, takes=chosen.targets, optional=chosen.decides)
    opened: dict[Allow, bool] = {
        "head_dims": head_dims, "inexact": inexact, "follow_branches": follow_branches, "own_class": own_class,
    }  # fmt: skip
    check_modes(modes)
    if recovery is not None:
        check_settings(recovery, data)
    with accelerator() as processes:  # starts the process group that the whole run shares, if there are several
        rank, world = processes.process_index, processes.num_processes
    if out is not None:
        prepare_run(out, model, data.example_inputs, say, follow_branches=follow_branches)
    judged: dict[str, Evaluation] = {"dense": evaluate(model, data.validation, loss_fn=data.loss_fn)}
    say(f"dense: {judged['dense']} on {len(data.validation)} validation examples")
    batches = Batches(data.train, batch_size, shuffle=True, seed=seed, augment=data.augment, rank=rank, world=world)
    result = prune(
        model,
        data.example_inputs,
        method=chosen,
        target=target,
        data=batches,
        loss_fn=on_main_output(data.loss_fn),
        ignored_layers=ignored_layers,
        allow=[name for name, asked in opened.items() if asked],
        allocation=allocation,
        seed=seed,
        progress=progress,
        checkpoint=Checkpoint(Path(out) / "stages.pt", resume) if out is not None and chosen.in_stages else None,
    )
    say(result.plan.explain())
    smaller = result.model

    def loss(present: nn.Module) -> float:
        stage = "batch_norm" if "one_shot" in judged else "one_shot"
        judged[stage] = evaluate(present, data.validation, loss_fn=data.loss_fn)
        return judged[stage].loss

    better = reestimate_if_better(smaller, batches, loss, num_batches=64)
    say(f"one-shot: {judged['one_shot']}; batch norm re-estimated: {judged['batch_norm']}")
    if not better:
        say("the old statistics are better on the validation split: they stay")
        if recovery is not None and recovery.batch_norm == "auto":
            recovery = replace(recovery, batch_norm="eval")
    failed = None if recovery is None else _recovered(smaller, model, data, recovery, progress)
    if failed is not None:
        say(f"recovery failed, and the network is saved as it was pruned: {failed.what}")
    elif recovery is not None:
        judged["recovered"] = evaluate(smaller, data.validation, loss_fn=data.loss_fn)
        say(f"recovered: {judged['recovered']}")
    saved = None
    if out is not None and rank == 0:
        files = artifact_files(smaller, result.plan, metrics=metrics_of(judged), example_inputs=data.example_inputs)
        saved = commit_or_rescue(out, files, _summary(data, chosen, result, judged, seed), say)
        if not chosen.in_stages and is_stage_file(saved.path / "stages.pt"):
            (saved.path / "stages.pt").unlink(missing_ok=True)  # of an earlier run, by another method
        say(f"saved in {saved.path}")
    if failed is not None:
        raise failed
    with nullcontext() if saved is None else saved.standing():
        judged["dense_test"] = evaluate(model, data.test, loss_fn=data.loss_fn)
        judged["test"] = evaluate(smaller, data.test, loss_fn=data.loss_fn)
        summary = _summary(data, chosen, result, judged, seed)
        if saved is not None:
            saved.add_metrics(result.plan, metrics_of(judged), {})
            saved.add_summary(summary)
        macs = (result.plan.before.macs, result.plan.after.macs)
        comparison = compare(model, smaller, data.example_inputs, modes=modes, macs=macs)
        summary["speed"] = comparison.to_dict()
        if saved is not None:
            saved.add_summary(summary)
            _draw(result, saved, say)
    for mode in comparison.modes:
        if mode.slower:
            told = "; ".join(w for w in comparison.warnings if w.startswith(f"{mode.mode}:"))
            warnings.warn(f"the smaller network is slower: {told}", RuntimeWarning, stacklevel=3)
    directory = None if saved is None or out is None else Path(out)
    return Compression(smaller, result, summary["accuracy"], summary["loss"], comparison, summary, directory, saved)


def _recovered(
    smaller: nn.Module, dense: nn.Module, data: DataSource, recovery: FinetuneConfig, progress: bool
) -> PruneError | None:
    """Recover in place. What stopped it, if something did; the network is then as it was before."""
    before = {name: tensor.clone() for name, tensor in smaller.state_dict().items()}
    try:
        finetune(smaller, data, recovery, teacher=copied(dense), progress=progress)
    except PruneError as error:
        smaller.load_state_dict(before)
        return error
    return None


def _draw(result: Result, saved: RunFolder, say: Say) -> None:
    if not result.stages:
        return
    try:
        saved.add("figures", draw_stages(result.stages))
    except MissingDependencyError as error:
        say(f"no figures: {error.what}; {error.fix}")


def _summary(
    data: DataSource,
    method: Method,
    result: Result,
    judged: Mapping[str, Evaluation],
    seed: int,
) -> dict[str, Any]:
    verification = result.verification
    return {
        "model": result.plan.model,
        "data": data.name,
        "method": result.plan.method,
        "settings": repr(method),
        "asked": result.plan.asked,
        "seed": seed,
        "accuracy": {name: found.accuracy for name, found in judged.items()},
        "loss": {name: found.loss for name, found in judged.items()},
        "before": vars(result.plan.before),
        "after": vars(result.plan.after),
        "kept": {g.name: [len(g.kept), g.units] for g in result.plan.groups},
        "stages": [{k: v for k, v in vars(s).items() if k != "probability"} for s in result.stages],
        "undecided": {g.name: len(g.undecided) for g in result.plan.groups},
        "proof": {
            "max_error": None if math.isnan(verification.max_error) else verification.max_error,
            "tolerance": verification.tolerance,
            "exact": verification.exact,
            "rewritten": verification.rewritten,
        },
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
