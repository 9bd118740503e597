"""Methods that decide by themselves how much goes: one procedure, one line per (seed, method), resumable."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from compare_staged import Slices
from prunus.data.datasets import Batches, DataSource
from prunus.data.evaluation import evaluate
from prunus.files.atomic import write_text
from prunus.formats.artifact import load, save
from prunus.methods.base import StagedMethod
from prunus.pipeline.prune import prune
from prunus.recovery.batchnorm import reestimate_if_better
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.finetuning import finetune
from record import Log, mean_std


def run_natural(
    name: str,
    dense_of_seed: Callable[[int], nn.Module],
    data: DataSource,
    methods: Mapping[str, StagedMethod],
    recovery: FinetuneConfig,
    seeds: Sequence[int],
    log: Path,
    split: str,
    batch_size: int = 128,
    steps: int | None = None,
    models: Path | None = None,
) -> list[dict[str, Any]]:
    """Prune without a budget, recover, judge; what is in the log already is not run again.

    A pass of a stage sees `steps` batches, or all; other settings than the passes' are in the methods. What was made is
    kept in `models`, so that the one chosen on the validation split is judged on the test split without a second run.
    """
    runs = Log(log)
    judged = data.test if split == "test" else data.validation
    for seed in seeds:
        for label, method in methods.items():
            key = {"name": name, "seed": seed, "label": label, "settings": repr(method)}
            key |= {"batch_size": batch_size} if batch_size != 128 else {}
            key |= {"steps": steps} if steps is not None else {}
            if runs.has(key):
                continue
            dense = dense_of_seed(seed)
            made = None if models is None else models / _slug(key | {"name": name.removesuffix(split)}, recovery)
            if made is not None and (made / "row.json").exists():
                row = json.loads((made / "row.json").read_text()) | {"name": name, "split": split}
                row |= {"dense_error": 100 - evaluate(dense, judged).accuracy}
                row |= {"error": 100 - evaluate(load(made / "artifact"), judged).accuracy}
                runs.add({k: v for k, v in row.items() if k != "error_at_once"}, "settings")
                continue
            batches = Batches(data.train, batch_size, shuffle=True, seed=seed, augment=data.augment)
            start = time.perf_counter()
            result = prune(
                dense, data.example_inputs, method=method, data=batches if steps is None else Slices(batches, steps),
                loss_fn=data.loss_fn, seed=seed, progress=False,
            )  # fmt: skip
            learning = time.perf_counter() - start
            at_once = evaluate(result.model, judged).accuracy
            calibration = Batches(data.train, 250, shuffle=True, seed=seed)
            reestimate_if_better(result.model, calibration, lambda m: evaluate(m, data.validation).loss, num_batches=40)
            finetune(result.model, data, replace(recovery, seed=seed), teacher=copy.deepcopy(dense), progress=False)
            row = {
                **key,
                "dense_error": 100 - evaluate(dense, judged).accuracy,
                "error_at_once": 100 - at_once,
                "error": 100 - evaluate(result.model, judged).accuracy,
                "validation_error": 100 - evaluate(result.model, data.validation).accuracy,
                "kept": {g.name: len(g.kept) for g in result.plan.groups},
                "macs": result.plan.after.macs,
                "weights": result.plan.after.weights,
                "proof": result.verification.max_error,
                "learning_seconds": round(learning, 1),
                "split": split,
            }
            runs.add(row, "settings")
            if made is not None:
                save(made / "artifact", result.model, result.plan, example_inputs=data.example_inputs)
                write_text(made / "row.json", json.dumps(row))
    asked = {(label, repr(method)) for label, method in methods.items()}
    return [r for r in runs.rows if r["name"] == name and r["seed"] in seeds and (r["label"], r["settings"]) in asked]


def _slug(key: Mapping[str, Any], recovery: FinetuneConfig) -> str:
    """A folder's name for what was made, whatever it is judged on."""
    what = {**key, "recovery": repr(recovery)}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def table_natural(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    """Markdown: error, MACs and structure, mean ± std over the seeds."""
    lines = ["| method | error, % | MACs | weights | kept, mean | seeds |", "|---|---|---|---|---|---|"]
    for label in labels:
        own = [r for r in rows if r["label"] == label]
        if not own:
            continue
        kept = "-".join(f"{sum(r['kept'][g] for r in own) / len(own):.0f}" for g in own[0]["kept"])
        macs = mean_std([r["macs"] / 1000 for r in own])
        weights = mean_std([r["weights"] / 1000 for r in own])
        error = mean_std([r["error"] for r in own])
        lines.append(f"| {label} | {error} | {macs} K | {weights} K | {kept} | {len(own)} |")
    return "\n".join(lines)
