"""Methods in stages against the others at equal total training cost (bar B3), in training epochs of the dense network.

Cost is epochs x MACs: scoring, every stage (learning the noise, and tuning, each at the size the network has by then)
and the recovery; a frozen weight counts like a trained one. Recoveries get as many epochs as bring each method nearest
to the same total.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import prunus
from compare_methods import Entry, RememberingTeacher, Setting, recipe_of, run
from prunus.data.datasets import ArrayDataset, Batches, DataSource
from prunus.data.evaluation import evaluate
from prunus.graph.grouping import Graph
from prunus.methods.base import StagedMethod, WeightCriterion
from prunus.pipeline.prune import prune
from prunus.plan.plan import Plan
from prunus.recovery.batchnorm import reestimate_batch_norm, reestimate_if_better
from prunus.recovery.finetuning import finetune
from record import Log, mean_std


class Slices:
    """Passes of so many batches each, that go through the data one after the other: every stage sees other examples."""

    def __init__(self, whole: Batches, steps: int) -> None:
        self.whole, self.steps = whole, steps
        self._batches = self._endless()

    @property
    def dataset(self) -> ArrayDataset:
        """All the data the slices are cut from."""
        return self.whole.dataset

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.steps):
            yield next(self._batches)

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = 0
        while True:
            self.whole.set_epoch(epoch)
            yield from self.whole
            epoch += 1


def staged_cost(
    graph: Graph, stages: Sequence[Sequence[str]], kept: Mapping[str, Sequence[int]], method: StagedMethod, share: float
) -> float:
    """Training cost of a recursion in epochs of the dense network.

    `stages` names the groups of each, `kept` the units that stay; `share` is the part of the data one pass sees.
    """
    so_far: dict[str, Sequence[int]] = {}
    size, cost = 1.0, 0.0
    for groups in stages:
        cost += share * method.epochs * size
        so_far |= {n: kept[n] for n in groups}
        after = Plan.from_kept(graph, so_far)
        size = after.after.macs / after.before.macs
        cost += share * method.tune_epochs * size
    return cost


def recovery_epochs(total: float, spent: float, macs_share: float) -> int:
    """Epochs of the smaller network that bring the cost nearest to `total` (at least one)."""
    return max(1, round((total - spent) / macs_share))


def run_staged(
    name: str,
    dense_of_seed: Callable[[int], nn.Module],
    data: DataSource,
    methods: Mapping[str, StagedMethod],
    setting: Setting,
    total: float,
    steps: int,
    seeds: Sequence[int],
    log: Path,
    batch_size: int = 64,
) -> list[dict[str, Any]]:
    """Prune in stages to the budget, recover with what is left of the total, judge; skip what is in the log."""
    runs, judged = Log(log), data.test if setting.split == "test" else data.validation
    assert setting.recovery is not None
    recipe = recipe_of(setting.recovery)
    for seed in seeds:
        teacher = RememberingTeacher(copy.deepcopy(dense_of_seed(seed)))
        for label, method in methods.items():
            key = {
                "name": name, "seed": seed, "label": label, "settings": repr(method),
                "steps": steps, "total": total, "recipe": recipe,
            }  # fmt: skip
            if runs.has(key):
                continue
            dense = dense_of_seed(seed)
            names = [g.name for g in prunus.trace(dense, data.example_inputs).groups()]
            batches = Slices(Batches(data.train, batch_size, shuffle=True, seed=seed, augment=data.augment), steps)
            start = time.perf_counter()
            result = prune(
                dense, data.example_inputs, method=method, target=setting.budget, data=batches, loss_fn=data.loss_fn,
                ignored_layers=[n for n in names if not setting.keep(n)], seed=seed, progress=False,
            )  # fmt: skip
            share = steps * batch_size / len(data.train)
            assert result.stages is not None
            stages = [stage.groups for stage in result.stages]
            # Sharing out the budget takes a first look at the data.
            spent = share + staged_cost(result.graph, stages, result.plan.kept, method, share)
            macs_share = result.plan.after.macs / result.plan.before.macs
            found: dict[str, Any] = {
                "macs_share": macs_share,
                "weights": result.plan.after.weights,
                "proof": result.verification.max_error,
                "kept": {g.name: len(g.kept) for g in result.plan.groups},
                "one_shot": evaluate(result.model, judged).accuracy,
                "stages_cost": spent,
            }
            epochs = recovery_epochs(total, spent, macs_share)
            adapted = copy.deepcopy(result.model)
            few = Batches(data.train, 250, shuffle=True, seed=seed)
            reestimate_batch_norm(adapted, few, num_batches=40)
            found["batch_norm"] = evaluate(adapted, judged).accuracy
            found["new_statistics"] = reestimate_if_better(
                result.model, few, lambda m: evaluate(m, data.validation).loss, num_batches=40
            )
            recovery = replace(setting.recovery, epochs=epochs, seed=seed)
            finetune(result.model, data, recovery, teacher=teacher, progress=False)
            found |= {
                "epochs": epochs,
                "cost": spent + epochs * macs_share,
                "recovered_accuracy": evaluate(result.model, judged).accuracy,
                "seconds": round(time.perf_counter() - start, 1),
                "split": setting.split,
            }
            runs.add({**key, **found}, "settings", "kept")
    wanted = [repr(m) for m in methods.values()]
    return [
        r for r in runs.rows
        if r["name"] == name and r["seed"] in seeds and r["settings"] in wanted
        and (r["total"], r["steps"]) == (total, steps)
    ]  # fmt: skip


def run_others(
    name: str,
    dense_of_seed: Callable[[int], nn.Module],
    data: DataSource,
    entries: Sequence[Entry],
    setting: Setting,
    total: float,
    seeds: Sequence[int],
    log: Path,
) -> list[dict[str, Any]]:
    """The methods that score once, recovered for as long as the total allows; rows of `cifar_resnet.py` are shared."""
    assert setting.recovery is not None
    assert setting.learning_examples is not None
    assert setting.budget is not None
    macs_share = float(setting.budget.removeprefix("macs<=").removesuffix("%")) / 100
    rows: list[dict[str, Any]] = []
    for entry in entries:
        scored = 0.0 if isinstance(entry.method, WeightCriterion) else setting.learning_examples / len(data.train)
        epochs = recovery_epochs(total, scored, macs_share)
        own = replace(setting, recovery=replace(setting.recovery, epochs=epochs))
        for row in run(f"{name} {epochs} epochs {setting.split}", dense_of_seed, data, [entry], own, seeds, log):
            rows.append({**row, "cost": scored + epochs * row["macs_share"]})
    return rows


def table_at_equal_cost(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    """Markdown: accuracies and cost, mean ± std over the seeds."""
    lines = ["| method | one-shot | batch norm | recovered | total cost | seeds |", "|---|---|---|---|---|---|"]
    for label in labels:
        own = [r for r in rows if r["label"] == label]
        if not own:
            continue
        cells = []
        for column in ("one_shot", "batch_norm", "recovered_accuracy"):
            values = [r[column] for r in own if column in r]
            cells.append(mean_std(values) if values else "-")
        costs = [r["cost"] for r in own if "recovered_accuracy" in r]
        cost = mean_std(costs) if costs else "-"
        lines.append(f"| {label} | {' | '.join(cells)} | {cost} | {len({r['seed'] for r in own})} |")
    return "\n".join(lines)
