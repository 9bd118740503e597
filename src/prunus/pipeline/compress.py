"""From a trained network and its data to a folder with a smaller, recovered, measured one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from prunus.data.batches import Splits, as_batches
from prunus.data.datasets import DataSource, batches_of, first_of, judged_at_once, size_of
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.evaluation import Evaluation, judged_by, metrics_of
from prunus.data.fitting import at_chance, check_fits, learned_by
from prunus.data.given import source_of
from prunus.data.passes import Position
from prunus.data.prepared import PREPARATION, written
from prunus.errors import ConfigError, MissingDependencyError
from prunus.files.fingerprint import data_digest, weights_digest
from prunus.files.stagefile import Checkpoint, is_stage_file
from prunus.formats.artifact import artifact_files
from prunus.formats.run import FEATURES, RECORD, RunFolder, commit_or_rescue, prepare_run
from prunus.layers.submodules import Ignored
from prunus.learning.kept import named
from prunus.learning.stored import stored_masks
from prunus.masks.activations import quantized_inputs
from prunus.masks.file import LayerMask
from prunus.masks.patterns import check_patterns
from prunus.measure.speed import Comparison, compare
from prunus.methods.base import MaskMethod, Method
from prunus.methods.registry import resolve
from prunus.pipeline.duration import duration_before
from prunus.pipeline.early import check_early
from prunus.pipeline.former import OPENED, RUN, TARGET
from prunus.pipeline.journal import journal
from prunus.pipeline.meeting import check_runtimes
from prunus.pipeline.prune import Result, prune
from prunus.pipeline.recovering import judged_once, recover
from prunus.pipeline.settings import RunSettings
from prunus.pipeline.tracking import check_trackers, tracked
from prunus.plan.allocation import Allocation
from prunus.plan.request import Allow, Target, allowed, requested
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.finetuning import Epoch, check_settings
from prunus.refit.config import RepairConfig
from prunus.reports.features import INPUTS, features_of
from prunus.reports.figures import figures_of
from prunus.reports.offers import Offer, offers_of
from prunus.reports.provenance import provenance
from prunus.reports.record import record_of
from prunus.reports.summary import summary_of
from prunus.reports.tables import changes
from prunus.runtime.copies import copied
from prunus.runtime.curves import point
from prunus.runtime.entry import entry
from prunus.runtime.fields import as_seed
from prunus.runtime.processes import accelerator
from prunus.runtime.progress import Say
from prunus.runtime.renamed import renamed
from prunus.runtime.seeds import start_at
from prunus.runtime.shown import Shown
from prunus.runtime.timing import NOTICEABLE
from prunus.sparse.choose import condense_where_faster_

JUDGED = 250
"""Examples of a batch that drawn masks are compared on."""


@dataclass(frozen=True, repr=False)
class Compression(Shown):
    """What `compress` made.

    Attributes:
        model: the smaller network, recovered; of masks inside weights, with zeros where nothing is kept.
        result: plan, findings and proof.
        accuracy: top-1 in percent, by stage: `dense`, `one_shot`, `batch_norm`, `recovered`, or `dense` and `masked`,
            on the validation split; `dense_test` and `test` on the test split, which is read once, at the end. Empty
            where no label was looked at, or another metric was.
        loss: the same of the mean loss (of a language model, nats per token); without labels of the divergence from the
            dense network.
        comparison: size and speed before and after, measured in one run.
        summary: everything above as plain numbers, as written to `summary.json`.
        directory: the folder, with `summary.json`, `plan.json` and `artifact/`; None if there is no `out`, or on
            other ranks than 0.
        saved: the same, to add more to the result.
        masks: what is kept inside weights, by layer, as the artifact holds it.
        agreement: without labels in place of the accuracy: how often the network puts the class first that the dense
            one does, in percent, by the same stages.
        scores: by the same stages, whatever networks were judged by: accuracy, agreement, the data's own metric or the
            loss; `summary["metric"]` says by what, and which direction is better.
    """

    model: nn.Module
    result: Result
    accuracy: Mapping[str, float]
    loss: Mapping[str, float]
    comparison: Comparison
    summary: Mapping[str, Any]
    directory: Path | None
    saved: RunFolder | None = None
    masks: Mapping[str, LayerMask] = field(default_factory=dict, repr=False)
    agreement: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """What the plan keeps, by what networks were judged, and where it is written."""
        stages = ("dense_test", "test") if "test" in self.scores else ("dense", list(self.scores)[-1])
        was, now = (self.scores[stage] for stage in stages)
        measure = self.summary.get("metric", {"name": "agreement" if self.agreement else "accuracy"})["name"]
        place = "" if self.directory is None else f", in {self.directory}"
        return f"{self.result.plan.line()}, {stages[1]} {measure} {was:.4g} -> {now:.4g}{place}"

    def explain(self) -> str:
        """The plan, what was proven, and what changed."""
        rows = changes(self.summary)
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        told = ["  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3))]) for row in rows]
        return "\n".join([self.result.explain(), *told])


@renamed(TARGET, OPENED, RUN)
@entry(unchanged=True)
def compress(
    model: nn.Module,
    data: DataSource | Splits | Mapping[str, Any] | tuple[Any, ...] | list[Any],
    *,
    method: Method | str = "dirichlet",
    target: Target | None = None,
    ignored_layers: Sequence[Ignored] = (),
    allow: Sequence[Allow] = (),
    allocation: Allocation | None = None,
    repair: bool | RepairConfig = True,
    recovery: FinetuneConfig | None = None,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
    run: RunSettings | None = None,
) -> Compression:
    """Prune, re-estimate batch norm, fine-tune with distillation from the dense model, save, measure.

    Methods that learn masks inside weights train the weights along with them, so that nothing is recovered afterwards.
    Whether `out` can be written is found out first. The result is on the disk before it is tested, timed and drawn.

    Args:
        model: the trained network; not touched.
        data: its data, as `prunus.data.source_of` takes them: a `DataSource`, whose parts may be loaders and whose
            `metric` is the user's, or `(train, validation, test)` loaders or data sets. Nothing is chosen on the test
            split. With `prunus.data.DenseOutputs()` for its `loss_fn` no label is looked at: the dense network's
            outputs are learned from, distilled, and agreed with.
        method: as for `prune`; of units or of weights.
        target: as for `prune`.
        ignored_layers: as for `prune`.
        allow: as for `prune`.
        allocation: as for `prune`.
        repair: as for `prune`.
        recovery: fine-tuning; None for none.
        out: folder to write.
        seed: for everything random.
        progress: show progress bars where there is a terminal.
        run: batch size, resuming, ways to run that are timed, and who is told about every step.

    Raises:
        PruneError: one of its kinds, before the work where it can be; the given model is as it was, and `out` holds
            what was there before (and the stages done so far, if the method works in stages), or the whole new result,
            if `run.say` was told so: the pruned network, where it is the recovery that failed.

    Warns:
        RuntimeWarning: a way to run that was timed takes longer than before, with what may help.

    Example:
        >>> import torch, prunus
        >>> from prunus.data import ArrayDataset, DataSource
        >>> part = ArrayDataset(torch.randn(64, 6), torch.arange(64) % 3)
        >>> data = DataSource("random", part, part, part, 3)
        >>> model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> untimed = prunus.RunSettings(modes=())
        >>> done = prunus.compress(model, data, method="l1", target=0.5, progress=False, run=untimed)
        >>> done.summary["kept"]
        {'0': [4, 8]}
    """
    how = RunSettings() if run is None else run
    seed, chosen, data = as_seed(seed), resolve(method), source_of(data, model)
    start_at(seed, alike=True)  # the order of loaders that shuffle
    inside = isinstance(chosen, MaskMethod)
    asked = requested(target, allocation, method=chosen.name, takes=chosen.targets, optional=chosen.decides)
    check_patterns(asked.patterns)
    check_runtimes(asked)
    free = isinstance(data.loss_fn, DenseOutputs)
    if free and asked.promise is not None and asked.promise.metric != "agreement":
        what = "it is of labels, and none are to be looked at"
        raise ConfigError(f"target {asked.promise.text!r}", what, "promise for example 'agreement>=98%@95%'")
    opened = allowed(allow, method=chosen.name, takes=chosen.allows)
    if recovery is not None and inside:
        what = f"method {chosen.name!r} trains the weights along with its masks, which a recovery would fill again"
        raise ConfigError("recovery", what, "leave it out; the settings of the method say how long it trains")
    if recovery is not None:
        check_settings(recovery, data)
    _check_resuming(out, how)
    check_trackers(how.track, out)
    with accelerator() as processes:  # starts the process group that the whole run shares, if there are several
        rank, world = processes.process_index, processes.num_processes
    if out is not None:
        prepare_run(out, model, data.example_inputs, how.say, follow_branches="follow_branches" in opened)
    check_fits(model, data)
    groups = 0 if inside else check_early(model, data.example_inputs, asked, opened, ignored_layers)

    def made_from() -> dict[str, str]:
        return {
            "model": f"{type(model).__name__} ({weights_digest(model)})",
            "data": f"{data.name} ({' '.join(data_digest(part) for part in (data.train, data.validation))})",
            "loss": named(data.loss_fn),
            "method": named(chosen),
            "target": repr(target),
            "ignored_layers": repr(list(ignored_layers)),
            "allow": repr(sorted(opened)),
            "allocation": repr(allocation),
            "repair": repr((RepairConfig() if repair else None) if isinstance(repair, bool) else repair),
            "recovery": repr(recovery),
            "batch_size": repr(how.batch_size),
            "seed": str(seed),
        }

    with journal(out, made_from, how) as account, tracked(account, how.track, made_from):
        run = replace(how, say=account.say)
        steps = account.steps
        stages = None if out is None else Checkpoint(Path(out) / "stages.pt", run.resume, steps)
        judge = judged_by(data, model)
        judged: dict[str, Evaluation] = {"dense": judged_once(steps, judge, model, data)}
        run.say(f"dense: {judged['dense']} on {size_of(data.validation)} of validation")
        if unsure := at_chance(judged["dense"], data):
            run.say(f"the dense network is {unsure}")
        size = run.batch_size or (128 if inside else 64)
        if (expected := duration_before(model, data, chosen, size, recovery, groups, world)) is not None:
            run.say(expected.line())
        batches = data.batches(size, seed=seed, rank=rank, world=world)
        at_once = judged_at_once(data.validation, JUDGED)
        if steps is not None:
            steps.moved["learned from"] = Position(as_batches(batches))
        held_out = batches_of(data.validation, at_once, workers=data.workers)
        result = prune(
            model,
            data.example_inputs,
            method=chosen,
            target=target,
            data=Splits(batches, held_out),
            loss_fn=learned_by(data),
            ignored_layers=ignored_layers,
            allow=allow,
            allocation=allocation,
            repair=repair,
            seed=seed,
            progress=progress,
            checkpoint=stages if chosen.in_stages or steps is not None else None,
        )
        run.say("\n".join([result.plan.explain(), *(load.explain() for load in result.loads)]))
        smaller, masked, failed = result.model, result.masked, None
        recovered: list[Epoch] = []
        grids = {} if masked is None else masked.inputs
        masks = stored_masks(chosen, masked, result.plan) if masked is not None and result.plan.patterns else {}
        if masked is not None:
            with quantized_inputs(smaller, grids):
                judged["masked"] = judge(smaller, data.validation)
            run.say(f"{result.plan.asked} in {len(masked.masks)} layers: {judged['masked']}")
        else:
            failed = recover(smaller, model, data, recovery, batches, judged, recovered, progress, run.say, steps)
        saved = None
        if out is not None and rank == 0:
            inputs = data.example_inputs
            files = artifact_files(smaller, result.plan, metrics=metrics_of(judged), example_inputs=inputs, masks=masks)
            preparation = getattr(data.train, "preparation", None)  # of pictures, which others are then prepared by
            files |= {} if preparation is None else {PREPARATION: written(preparation)}
            saved = commit_or_rescue(out, files, summary_of(model, data, chosen, result, judged, seed), run.say)
            if not chosen.in_stages and is_stage_file(saved.path / "stages.pt"):
                (saved.path / "stages.pt").unlink(missing_ok=True)  # of an earlier run, by another method
            run.say(f"saved in {saved.path}")
            with saved.standing():
                others = offers_of(result.graph, result.plan, result.scores, allocation, seed)
                _record(model, smaller, data, result, others, recovered, run, saved)
        if failed is not None:
            raise failed
        with nullcontext() if saved is None else saved.standing():
            if data.test is not None:
                judged["dense_test"] = judge(model, data.test)
                with quantized_inputs(smaller, grids):
                    judged["test"] = judge(smaller, data.test)
            for number, (stage, found) in enumerate(judged.items()):
                point(f"{found.metric}/{stage}", found.score, number)
            summary = summary_of(model, data, chosen, result, judged, seed)
            if saved is not None:
                saved.add_metrics(result.plan, metrics_of(judged), masks)
                saved.add_summary(summary)
                _draw(result, saved, run.say)
            comparison, timed = _measured(model, smaller, masks, data, result, run)
            summary |= timed
            if saved is not None:
                saved.add_summary(summary)
        for mode in comparison.modes if not masks else ():
            if mode.slower:
                told = "; ".join(w for w in comparison.warnings if w.startswith(f"{mode.mode}:"))
                warnings.warn(f"the smaller network is slower: {told}", RuntimeWarning, stacklevel=4)
        directory = None if saved is None or out is None else Path(out)
        shares = [summary.get(measure, {}) for measure in ("accuracy", "agreement")]
        return Compression(
            smaller,
            result,
            shares[0],
            summary["loss"],
            comparison,
            summary,
            directory,
            saved,
            masks,
            agreement=shares[1],
            scores={stage: found.score for stage, found in judged.items()},
        )


def _check_resuming(out: str | os.PathLike[str] | None, run: RunSettings) -> None:
    """Raise ConfigError if there is nothing to go on in, or two things are asked that exclude each other."""
    if run.resume and out is None:
        raise ConfigError("resume", "there is no folder to go on in", "give out=")
    if run.resume and run.force:
        what = "one goes on with what the folder holds, the other replaces it"
        raise ConfigError("resume and force", what, "give one of them")


def _measured(
    dense: nn.Module,
    smaller: nn.Module,
    masks: Mapping[str, LayerMask],
    data: DataSource,
    result: Result,
    run: RunSettings,
) -> tuple[Comparison, dict[str, Any]]:
    """Time before and after, and what the summary says of it; masked layers run condensed where that is faster."""
    if not masks:
        macs = (result.plan.before.macs, result.plan.after.macs)
        comparison = compare(dense, smaller, data.example_inputs, modes=run.modes, macs=macs)
        return comparison, {"speed": comparison.to_dict()}
    fast = copied(smaller)
    eager = tuple(mode for mode in run.modes if mode == "eager")  # condensed layers have no other form
    ratios = condense_where_faster_(fast, masks, data.example_inputs) if eager else {}
    # Advice on widths is for smaller layers, not for zeros inside them.
    comparison = replace(compare(dense, fast, data.example_inputs, modes=eager), warnings=())
    if eager:
        took = sum(ratio is not None and ratio < NOTICEABLE for ratio in ratios.values())
        run.say(f"{took} of {len(masks)} masked layers run faster condensed")
    return comparison, {"speed": comparison.to_dict(), "condensed_time_ratio": ratios}


def _record(
    dense: nn.Module,
    smaller: nn.Module,
    data: DataSource,
    result: Result,
    offers: Sequence[Offer],
    recovered: Sequence[Epoch],
    run: RunSettings,
    saved: RunFolder,
) -> None:
    """Add what the report shows beyond summary and plan."""
    graph, plan, scores = result.graph, result.plan, result.scores
    made = provenance(dense, smaller)
    record = record_of(graph, plan, result.findings, offers=offers, recovery=recovered, made=made)
    saved.add(RECORD, record.to_json().encode())
    if run.features:
        inputs = first_of(data.validation, INPUTS, dense)
        if features := features_of(dense, graph, scores.values, inputs):
            saved.add(FEATURES, features.to_bytes())


def _draw(result: Result, saved: RunFolder, say: Say) -> None:
    try:
        pictures = figures_of(result.findings)
    except MissingDependencyError as error:
        say(f"no figures: {error.what}; {error.fix}")
        return
    if pictures:
        saved.add("figures", pictures)
