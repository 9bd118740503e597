"""One procedure for every method: score, cut to the same budget or counts, evaluate, recover, evaluate.

Every (seed, method) writes its own line at once, so that an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import prunus
from prunus.data.datasets import Batches, DataSource
from prunus.data.evaluation import evaluate
from prunus.methods.base import Method
from prunus.pipeline.planning import make_plan, score
from prunus.plan.allocation import Allocation
from prunus.plan.budget import Budget
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from prunus.recovery.batchnorm import reestimate_batch_norm
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.finetuning import finetune
from record import Log, mean_std


@dataclass(frozen=True)
class Entry:
    """One row of a table: a method with its own allocation, chosen on the validation split."""

    label: str
    method: Method
    allocation: Allocation | None = None


@dataclass(frozen=True)
class Setting:
    """What is asked of every method alike.

    Attributes:
        keep: group names that may be pruned (a predicate), so that every method works on the same groups.
        budget: text, or None with counts.
        counts: kept counts by hand.
        recovery: fine-tuning after pruning, or None.
        recovered: labels that are fine-tuned; None for all.
        learning_examples: training images for scoring; None for all.
        split: `validation` while choosing, `test` for the final numbers.
    """

    keep: Callable[[str], bool]
    budget: str | None = None
    counts: Mapping[str, int] | None = None
    recovery: FinetuneConfig | None = None
    recovered: tuple[str, ...] | None = None
    learning_examples: int | None = None
    learning_batch: int = 64
    split: str = "validation"


class RememberingTeacher(nn.Module):
    """The dense network in eval mode; answers it has given once come from memory.

    Recoveries with the same seed show the same augmented images, so one pass of the teacher serves every method.
    """

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.dense = dense
        self.answers: dict[bytes, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `x`."""
        key = hashlib.blake2b(x.detach().cpu().contiguous().numpy().tobytes()).digest()
        if key not in self.answers:
            self.answers[key] = self.dense(x).detach()
        return self.answers[key]


def run(
    name: str,
    dense_of_seed: Callable[[int], nn.Module],
    data: DataSource,
    entries: Sequence[Entry],
    setting: Setting,
    seeds: Sequence[int],
    log: Path,
) -> list[dict[str, Any]]:
    """Run what is not in the log yet, in two rounds: all without recovery, then recovery seed by seed."""
    runs = Log(log)
    plans: dict[tuple[int, str], tuple[Plan, float]] = {}
    for recover in (False, True):
        for seed in seeds:
            teacher = RememberingTeacher(copy.deepcopy(dense_of_seed(seed)))
            for entry in entries:
                wanted = setting.recovery is not None and (not setting.recovered or entry.label in setting.recovered)
                key: dict[str, Any] = {"name": name, "seed": seed, "label": entry.label, "recovered": recover}
                if recover and setting.recovery is not None:
                    key["recipe"] = recipe_of(setting.recovery)
                if runs.has(key) or (recover and not wanted):
                    continue
                dense = dense_of_seed(seed)
                if (seed, entry.label) not in plans:
                    plans[seed, entry.label] = planned(dense, data, entry, setting, seed)
                found = one(dense, data, *plans[seed, entry.label], setting, seed, teacher if recover else None)
                runs.add({**key, **found}, "kept")
    recipe = None if setting.recovery is None else recipe_of(setting.recovery)
    return [r for r in runs.rows if r["name"] == name and r["seed"] in seeds and r.get("recipe", recipe) == recipe]


def recipe_of(recovery: FinetuneConfig) -> str:
    """The settings of a recovery that its results depend on most, as text."""
    return f"lr={recovery.peak:g},distillation={recovery.distillation:g}"


def planned(dense: nn.Module, data: DataSource, entry: Entry, setting: Setting, seed: int) -> tuple[Plan, float]:
    """What one method with one seed keeps, and the seconds it took."""
    train = (
        data.train
        if setting.learning_examples is None
        else data.train.subset(
            torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[: setting.learning_examples]
        )
    )
    start = time.perf_counter()
    graph = prunus.trace(dense, data.example_inputs)
    groups = [g for g in graph.groups() if setting.keep(g.name)]
    batches = Batches(train, setting.learning_batch, shuffle=True, seed=seed, augment=data.augment)
    allocation = entry.allocation if setting.budget is not None else None
    measured = allocation is not None and allocation.scope == "measured"
    scores = score(dense, groups, entry.method, batches, data.loss_fn, seed=seed, measured=measured)
    plan = make_plan(
        graph,
        groups,
        scores,
        budget=None if setting.budget is None else Budget.parse(setting.budget),
        kept_counts=setting.counts,
        allocation=allocation,
    )
    return plan, time.perf_counter() - start


def one(
    dense: nn.Module,
    data: DataSource,
    plan: Plan,
    scoring: float,
    setting: Setting,
    seed: int,
    teacher: nn.Module | None,
) -> dict[str, Any]:
    """One plan carried out and judged; recovered from the teacher if there is one."""
    judged = data.test if setting.split == "test" else data.validation
    smaller, proof = apply_and_verify_(copy.deepcopy(dense), plan, data.example_inputs)
    found: dict[str, Any] = {
        "macs": plan.after.macs,
        "params": plan.after.params,
        "weights": plan.after.weights,
        "macs_share": plan.after.macs / plan.before.macs,
        "proof": proof.max_error,
        "scoring_seconds": round(scoring, 1),
        "kept": {g.name: len(g.kept) for g in plan.groups},
        "split": setting.split,
    }
    if teacher is None:
        found["one_shot"] = evaluate(smaller, judged).accuracy
        reestimate_batch_norm(smaller, Batches(data.train, 250, shuffle=True, seed=seed), num_batches=40)
        found["batch_norm"] = evaluate(smaller, judged).accuracy
        return found
    assert setting.recovery is not None
    reestimate_batch_norm(smaller, Batches(data.train, 250, shuffle=True, seed=seed), num_batches=40)
    start = time.perf_counter()
    done = finetune(smaller, data, replace(setting.recovery, seed=seed), teacher=teacher, progress=False)
    found["recovery_seconds"] = round(time.perf_counter() - start, 1)
    found["best_epoch"] = done.best_epoch
    found["recovered_accuracy"] = evaluate(smaller, judged).accuracy
    return found


def table(rows: Sequence[Mapping[str, Any]], entries: Sequence[Entry], error: bool = False) -> str:
    """Markdown: mean ± std over the seeds per column; errors instead of accuracies if asked."""
    columns = (("one-shot", "one_shot"), ("batch norm re-estimated", "batch_norm"), ("recovered", "recovered_accuracy"))
    kind = "error" if error else "accuracy"
    lines = [
        f"| method | {' | '.join(c for c, _ in columns)} | MACs kept | weights | seeds |",
        "|---|" + "---|" * (len(columns) + 3),
    ]
    for entry in entries:
        own = [r for r in rows if r["label"] == entry.label]
        cells, seeds = [], 0
        for _, column in columns:
            values = [100 - r[column] if error else r[column] for r in own if column in r]
            seeds = max(seeds, len(values))
            cells.append(f"{mean_std(values)} ({len(values)})" if values else "-")
        if own:
            share = sum(r["macs_share"] for r in own) / len(own)
            weights = sum(r["weights"] for r in own) / len(own)
            lines.append(f"| {entry.label} | {' | '.join(cells)} | {100 * share:.1f} % | {weights:,.0f} | {seeds} |")
    return f"{kind} in %, mean ± std (number of seeds)\n\n" + "\n".join(lines)
