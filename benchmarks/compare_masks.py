"""Masks inside weights: every method from the same trained network with the same training; runs resume by line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from prunus import prune
from prunus.data.batches import Splits
from prunus.data.datasets import Batches, DataSource
from prunus.data.evaluation import evaluate
from prunus.methods.dpp import DynamicProbabilisticPruning
from record import Log, mean_std


def alike(own: DynamicProbabilisticPruning, epochs: int, drawing: float) -> dict[str, DynamicProbabilisticPruning]:
    """Dynamic probabilistic pruning, and fixed masks with as much of the same training."""
    own = replace(own, epochs=round(epochs * drawing))
    own = replace(own, tune_epochs=epochs - own.epochs)
    fixed = replace(own, epochs=0, tune_epochs=epochs)
    return {
        "dpp": own,
        "magnitude": replace(fixed, prior=1.0, init_std=0.0),
        "random": replace(fixed, prior=0.0, init_std=1.0),
    }


def run_masks(
    net: str,
    dense_of_seed: Callable[[int], nn.Module],
    layers: Sequence[str],
    data: DataSource,
    methods: Mapping[str, DynamicProbabilisticPruning],
    seeds: Sequence[int],
    log: Path,
    split: str,
    batch_size: int = 128,
) -> list[dict[str, Any]]:
    """Run what is not in the log yet; masks are compared on the validation split, results judged on `split`."""
    runs = Log(log)
    judged = data.test if split == "test" else data.validation
    for seed in seeds:
        for label, method in methods.items():
            key = {"net": net, "seed": seed, "label": label, "settings": repr(method)}
            if runs.has(key):
                continue
            dense = dense_of_seed(seed)
            batches = Batches(data.train, batch_size, shuffle=True, seed=seed, augment=data.augment)
            start = time.perf_counter()
            result = prune(
                dense, data.example_inputs, method=method, target=dict.fromkeys(layers, method.pattern),
                data=Splits(batches, Batches(data.validation, 500)), loss_fn=data.loss_fn, repair=False, seed=seed,
                progress=False,
            )  # fmt: skip
            found = result.masked
            last = found.history[-1] if found.history else None
            row = {
                **key,
                "pattern": method.pattern,
                "error": 100 - evaluate(result.model, judged).accuracy,
                "dense_error": 100 - evaluate(dense, judged).accuracy,
                "confidence": None if last is None else [dict(e.confidence) for e in found.history],
                "flips": None if last is None else dict(last.flips),
                "sampled_loss": found.sampled_loss,
                "fixed_loss": found.fixed_loss,
                "seconds": round(time.perf_counter() - start, 1),
            }
            runs.add(row, "settings", "confidence", "flips")
    wanted = {(label, repr(m)) for label, m in methods.items()}
    return [r for r in runs.rows if r["net"] == net and r["seed"] in seeds and (r["label"], r["settings"]) in wanted]


def table_masks(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    """Markdown: error by pattern and method, mean ± std over the seeds."""
    lines = [f"| pattern | dense | {' | '.join(labels)} | seeds |", "|---|---|" + "---|" * (len(labels) + 1)]
    for pattern in dict.fromkeys(r["pattern"] for r in rows):
        own = [r for r in rows if r["pattern"] == pattern]
        cells = []
        for label in labels:
            errors = [r["error"] for r in own if r["label"] == label]
            cells.append(mean_std(errors) if errors else "-")
        dense = mean_std(list({r["seed"]: r["dense_error"] for r in own}.values()))
        lines.append(f"| {pattern} | {dense} | {' | '.join(cells)} | {len({r['seed'] for r in own})} |")
    return "\n".join(lines)
