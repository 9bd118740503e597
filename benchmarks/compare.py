"""Methods, with and without repair, and Torch-Pruning: the same data, the same cost, the same recovery (bars E1, E2).

    PRUNUS_SHARED=DIR python benchmarks/compare.py benchmarks/cpu.yaml --cifar DIR [--hours 6] [--nets lenet5 ...]

Every cell (network, target, method, repair, seed) is a line of `results/compare_NAME.jsonl`, written at once: what is
there is not run again, and two processes may share the work (`--part 0/2`, `--part 1/2`). Networks whose weights or
data are not given are left out, and said. `plots.py` draws the figures and writes the tables.

Selection, allocation and repair see the same training examples. Batch norms are estimated anew where the validation
split is better for it. The recovery is `compress`'s own, from the same start for all, with new random numbers by seed.
Its cost and that of pruning are CPU seconds over those of a dense forward and backward pass of one example, measured in
the same process. Results are read off the test split; nothing is chosen on it.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import prunus
from given import brief
from options import Parser, cache_of, smoking
from prunus.data.datasets import Batches, DataSource
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.evaluation import Evaluation, evaluate
from prunus.methods.base import PosteriorMethod
from prunus.methods.registry import resolve
from prunus.methods.settings import values_of
from prunus.pipeline.duration import seconds_of_a_step
from prunus.pipeline.recovering import recover
from prunus.plan.allocation import Allocation
from prunus.recovery.config import FinetuneConfig
from record import Log, results
from repair import inner_alone
from rivals import RIVALS, cut_by_rival, macs_of
from subjects import CHECKPOINTS, TRAINED_HERE, on_cifar10, on_digits

TIMED = 64
"""Examples of the pass that costs are told in."""


@dataclass(frozen=True)
class Cell:
    """One line of a table."""

    net: str
    target: int
    method: str
    repair: bool
    seed: int
    recoveries: tuple[str, ...]

    @property
    def key(self) -> dict[str, Any]:
        """What names it among the results."""
        return {k: v for k, v in vars(self).items() if k != "recoveries"}


def cells(asked: dict[str, Any]) -> list[Cell]:
    """All of a comparison, whole tables of the first seed first."""
    found = []
    for table in asked["tables"]:
        methods, rivals = (table.get(kind, asked[kind]) for kind in ("methods", "rivals"))
        rows = [(m, r) for m in methods for r in asked["repair"]] + [(r, False) for r in rivals]
        found += [
            Cell(net, target, method, repair, seed, tuple(table["recoveries"]))
            for seed in table["seeds"]
            for net in table["nets"]
            for target in table["targets"]
            for method, repair in rows
        ]
    return sorted(found, key=lambda cell: cell.seed)


def subject(cell: Cell, args: argparse.Namespace) -> tuple[nn.Module, DataSource, list[str]]:
    """A dense network, its data and the layers that every method leaves whole; of a ResNet all but the inner ones."""
    if cell.net in TRAINED_HERE:
        return *on_digits(cell.net, cell.seed, cache_of(args)), []
    model, data = on_cifar10(cell.net, args.cifar)
    return model, data, inner_alone(model)  # Torch-Pruning can't follow the padded shortcuts


def pruned(
    cell: Cell, dense: nn.Module, data: DataSource, ignored: list[str], asked: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The smaller network, and what pruning says of itself."""
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(cell.seed))[: asked["examples"]]
    batches = Batches(data.train.subset(chosen), 64, shuffle=True, seed=cell.seed)
    if cell.method in RIVALS:
        torch.manual_seed(cell.seed)
        return cut_by_rival(cell.method, dense, data, batches, cell.target / 100, ignored), {}
    method = resolve(cell.method)
    if isinstance(method, PosteriorMethod):
        method = brief(replace(method, min_steps=asked["steps"]))
    result = prunus.prune(
        dense,
        data.example_inputs,
        method=method,
        target=f"macs<={cell.target}%",
        data=batches,
        loss_fn=data.loss_fn,
        ignored_layers=ignored,
        allocation=Allocation(round_to=1),
        repair=cell.repair,
        seed=cell.seed,
        progress=False,
    )
    return result.model, {
        "proof": result.verification.max_error,
        "kept": {g.name: len(g.kept) for g in result.plan.groups},
    }


def one(cell: Cell, args: argparse.Namespace, asked: dict[str, Any]) -> dict[str, Any]:
    """Everything about a cell."""
    dense, data, ignored = subject(cell, args)
    few = data.train.normalise(data.train.inputs[:TIMED])
    example = seconds_of_a_step(dense, few) / TIMED
    start = time.process_time()
    model, told = pruned(cell, dense, data, ignored, asked)
    found: dict[str, Any] = {
        "macs": macs_of(model, data.example_inputs) / macs_of(dense, data.example_inputs),
        "params": sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in dense.parameters()),
        "dense": evaluate(dense, data.test, loss_fn=data.loss_fn).score,
        "pruning_seconds": round(time.process_time() - start, 1),
        "pruning_cost": round((time.process_time() - start) / example),
        "labelled_examples": 0 if not resolve_needs(cell.method) else asked["examples"],
        **told,
    }
    for recipe in ("", *cell.recoveries):
        start = time.process_time()
        network, config, taught = copy.deepcopy(model), *recipe_of(recipe, data, cell.seed)
        failed = recover(
            network, dense, taught, config, Batches(data.train, 64, shuffle=True, seed=cell.seed), stages(), []
        )
        judged = evaluate(network, data.test, loss_fn=data.loss_fn)
        found[recipe or "one-shot"] = {
            "score": judged.score,
            "loss": judged.loss,
            "cost": round((time.process_time() - start) / example),
            **({} if failed is None else {"failed": failed.what}),
        }
    return found


def stages() -> dict[str, Evaluation]:
    """What a recovery writes its stages into."""
    return {}


def resolve_needs(method: str) -> bool:
    """Whether a method looks at labels."""
    return "Taylor" in method if method in RIVALS else resolve(method).needs_data


def recipe_of(recipe: str, data: DataSource, seed: int) -> tuple[FinetuneConfig | None, DataSource]:
    """The recovery of a text, and what it learns from; without a text new statistics at most."""
    parts = [part.strip() for part in recipe.split(",") if part.strip()]
    taught = replace(data, loss_fn=DenseOutputs()) if "labels=none" in parts else data
    asked = [part for part in parts if part != "labels=none"]
    if smoking():
        asked = ["epochs=0.1" if part.startswith("epochs") else part for part in asked]
    return (FinetuneConfig(seed=seed, **values_of(FinetuneConfig, asked)) if asked else None), taught


def mine(found: list[Cell], part: str) -> Iterator[Cell]:
    """The share of a process: I/N, every Nth cell from the Ith on."""
    number, _, parts = part.partition("/")
    return (cell for place, cell in enumerate(found) if place % int(parts) == int(number))


def main() -> None:
    parser = Parser(__doc__, nets=["lenet300"])
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__).with_name("cpu.yaml"))
    parser.add_argument("--cifar", metavar="DIR", help="CIFAR-10's binary version, for the ResNets")
    parser.add_argument("--nets", nargs="+", choices=[*TRAINED_HERE, *CHECKPOINTS], help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these")
    parser.add_argument("--hours", type=float, default=6.0, help="after which no further cell is begun")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="the share of this process")
    parser.add_cache()
    args = parser.parse_args()
    torch.set_num_threads(1)
    asked = yaml.safe_load(args.file.read_text())
    if smoking():
        asked |= {"examples": 32, "methods": ["l1"], "rivals": []}
    log, began, left_out = Log(results() / f"compare_{asked['name']}.jsonl"), time.monotonic(), set()
    wanted = [c for c in cells(asked) if args.nets is None or c.net in args.nets]
    wanted = [c for c in wanted if args.seeds is None or c.seed in args.seeds][: 2 if smoking() else None]
    todo = [cell for cell in mine(wanted, args.part) if not known(log, cell)]
    for place, cell in enumerate(todo):
        if time.monotonic() - began > 3600 * args.hours:
            print(f"{len(todo) - place} of {len(todo)} cells are left for the next run")
            return
        if cell.net in left_out:
            continue
        try:
            log.add({**cell.key, **one(cell, args, asked)}, "kept")
        except SystemExit:  # said already
            left_out.add(cell.net)


def known(log: Log, cell: Cell) -> bool:
    """Whether a line holds the cell with all its recoveries."""
    return any(all(r in row for r in cell.recoveries) for row in log.rows if cell.key.items() <= row.items())


if __name__ == "__main__":
    main()
