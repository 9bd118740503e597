"""Methods with and without repair, and those of others: same data, cost and recovery (bars E1, E2 and E3).

    PRUNUS_SHARED=DIR python benchmarks/compare.py benchmarks/cpu.yaml --cifar DIR [--hours 6] [--nets lenet5 ...]

Every cell (network, target, method, repair, seed) is a line of `results/compare_NAME.jsonl`, written at once: what is
there is not run again, and two processes may share the work (`--part 0/2`, `--part 1/2`). Networks whose weights or
data are not given are left out, and said. `plots.py` draws the figures and writes the tables. A table is at a share of
the MACs, or with `resource: latency` at one of the measured latency (`limits.py`).

Selection, allocation and repair see the same training examples. Batch norms are estimated anew where the validation
split is better for it. The recovery is `compress`'s own, from the same start for all, with new random numbers by seed.
Its cost and that of pruning are CPU seconds over those of a dense forward and backward pass of one example, measured in
the same process. Results are read off the test split; nothing is chosen on it.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from baselines import BASELINES, cut_by_baseline
from limits import KEPT, Limit, latency_of, macs_of, timing
from options import Parser, cache_of, smoking
from ours import cut_by_ours
from prunus.data.datasets import Batches, DataSource
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.evaluation import Evaluation, evaluate
from prunus.errors import BudgetError
from prunus.methods.registry import resolve
from prunus.methods.settings import values_of
from prunus.pipeline.recovering import recover
from prunus.recovery.config import FinetuneConfig
from record import Log, results, timed
from repair import inner_alone
from rivals import RIVALS, cut_by_rival
from subjects import CHECKPOINTS, TRAINED_HERE, on_cifar10, on_digits

TIMED, PASSES = 64, 20
"""Examples of the pass that costs are told in, and how many passes are timed."""

SMOKED: dict[str, Any] = {
    "nets": ["lenet300"], "targets": [50], "seeds": [0], "recoveries": ["epochs=1"],
    "methods": ["l1", "sbp", "dpp"], "rivals": list(BASELINES),
}  # fmt: skip
TIMED_TOO = {"resource": "latency", "targets": [90], "methods": [], "rivals": ["OPD"]}


@dataclass(frozen=True)
class Cell:
    """One line of a table."""

    net: str
    target: int | str
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
        resource = table.get("resource", "macs")
        named = (lambda target: target) if resource == "macs" else f"{resource} {{}}".format
        methods, rivals = (table.get(kind, asked[kind]) for kind in ("methods", "rivals"))
        repairs = table.get("repair", asked["repair"])
        rows = [(m, r) for m in methods for r in repairs] + [(r, False) for r in rivals]
        found += [
            Cell(net, target, method, repair, seed, tuple(table["recoveries"]))
            for seed in table["seeds"]
            for net in table["nets"]
            for target in map(named, table["targets"])
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
    limit = Limit.of(cell.target, dense, data.example_inputs)
    torch.manual_seed(cell.seed)
    if cell.method in RIVALS:
        return cut_by_rival(cell.method, dense, data, batches, limit, ignored), {}
    if cell.method in BASELINES:
        return cut_by_baseline(cell.method, dense, data, batches, limit, ignored), {}
    how: dict[str, Any] = {"repair": cell.repair, "steps": asked["steps"], "seed": cell.seed}
    model, plan, error = cut_by_ours(cell.method, dense, data, batches, limit.text, ignored, **how)
    return model, {"proof": error, "kept": {g.name: len(g.kept) for g in plan.groups}}


def one(cell: Cell, args: argparse.Namespace, asked: dict[str, Any]) -> dict[str, Any]:
    """Everything about a cell."""
    dense, data, ignored = subject(cell, args)
    example = seconds_of_an_example(dense, data.train.normalise(data.train.inputs[:TIMED]))
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
    if isinstance(cell.target, str):
        found["latency"] = latency_of(model, timing(dense, data.example_inputs), data.example_inputs, KEPT)
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


def seconds_of_an_example(dense: nn.Module, inputs: Tensor) -> float:
    """CPU time of a forward and backward pass; the least of several, since the machine has other work."""
    network = copy.deepcopy(dense)
    step = timed(lambda: network(inputs).square().mean().backward())
    return min(step() for _ in range(PASSES)) / len(inputs)


def stages() -> dict[str, Evaluation]:
    """What a recovery writes its stages into."""
    return {}


def resolve_needs(method: str) -> bool:
    """Whether a method looks at labels."""
    if method in BASELINES:
        return method in ("OPD", "OBS")
    return "Taylor" in method if method in RIVALS else resolve(method).needs_data


def recipe_of(recipe: str, data: DataSource, seed: int) -> tuple[FinetuneConfig | None, DataSource]:
    """The recovery of a text, and what it learns from; without a text new statistics at most."""
    parts = [part.strip() for part in recipe.split(",") if part.strip()]
    taught = replace(data, loss_fn=DenseOutputs()) if "labels=none" in parts else data
    asked = [part for part in parts if part != "labels=none"]
    if smoking():
        asked = ["epochs=0.1" if part.startswith("epochs") else part for part in asked]
    return (FinetuneConfig(seed=seed, **values_of(FinetuneConfig, asked)) if asked else None), taught


def runnable(found: list[Cell]) -> list[Cell]:
    """Cells whose packages are installed; what is left out is said once."""
    kinds: dict[str, Callable[[Cell], bool]] = {
        "torch_pruning": lambda cell: cell.method in RIVALS,
        "onnxruntime": lambda cell: isinstance(cell.target, str),
    }
    for package, needing in kinds.items():
        left = [cell for cell in found if not needing(cell)]
        if len(left) < len(found) and importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: {len(found) - len(left)} cells are left out", flush=True)
            found = left
    return found


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
        asked |= {"examples": 32, "steps": 2, "tables": [SMOKED, {**SMOKED, **TIMED_TOO}]}
    log, began, left_out = Log(results() / f"compare_{asked['name']}.jsonl"), time.monotonic(), set()
    wanted = [c for c in cells(asked) if args.nets is None or c.net in args.nets]
    wanted = [c for c in wanted if args.seeds is None or c.seed in args.seeds]
    wanted = runnable(wanted)
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
        except BudgetError as error:
            print(f"{cell.key} is left out: {error}", flush=True)


def known(log: Log, cell: Cell) -> bool:
    """Whether a line holds the cell with all its recoveries."""
    return any(all(r in row for r in cell.recoveries) for row in log.rows if cell.key.items() <= row.items())


if __name__ == "__main__":
    main()
