"""Recovery of ResNets at half of the MACs, with and without repair: parts of an epoch or several, labels or none (I4).

    python benchmarks/repair_recovery.py --data DIR --weights FILE --epochs 0.1 1 --labels 1 0 [--split test]

Selection, allocation and repair are those of `repair.py`: 1,000 training images, no label. Then batch norm and recovery
as `compress` does them. `--recipes`: settings of the recovery, such as `lr=0.01,batch_norm=eval`; empty is the default.

The shared checkpoints know every training image by heart, so that what stays close to them looks good on held-out
training images, and on shifted and mirrored ones too. Epochs and recipes are therefore chosen on turned, scaled,
lightened and darkened ones, by so much that the dense network errs on them about as often as on the test set.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from given import cifar10, resnet
from options import Parser, cache_of
from prunus.data.datasets import ArrayDataset, Batches, DataSource
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.evaluation import Evaluation, evaluate
from prunus.methods.settings import values_of
from prunus.pipeline.recovering import recover
from prunus.plan.allocation import Allocation
from prunus.recovery.config import FinetuneConfig
from record import Log, mean_std, results
from repair import DEPTHS, pruned

METHODS = ("dirichlet", "taylor", "l1")
STRENGTH = 0.15
"""Of the distortion: the dense ResNet-20 then has 91.5 % (test: 91.7)."""
CHOSEN_ON = 1000
"""Held-out images that epochs are chosen on; the others are what recipes are compared on."""


def unfamiliar(images: ArrayDataset, strength: float = STRENGTH) -> ArrayDataset:
    """Images turned, scaled, shifted, mirrored, lightened or darkened, each by its own draw (seed 0)."""
    stream, count = torch.Generator().manual_seed(0), len(images)
    assert isinstance(images.inputs, Tensor)

    def drawn() -> Tensor:
        return torch.rand(count, generator=stream) * 2 - 1

    angle, scale, right, down = drawn() * strength * math.pi / 2, 1 + drawn() * strength, drawn() / 4, drawn() / 4
    mirror, contrast, light = drawn().sign(), 1 + drawn() * strength, drawn() * strength * 64
    rows = [[angle.cos() * scale * mirror, -angle.sin() * scale, right],
            [angle.sin() * scale * mirror, angle.cos() * scale, down]]  # fmt: skip
    turns = torch.stack([torch.stack(row, 1) for row in rows], 1)
    places = F.affine_grid(turns, list(images.inputs.shape), align_corners=False)
    moved = F.grid_sample(images.inputs.float(), places, align_corners=False)
    moved = (moved - 128) * contrast[:, None, None, None] + 128 + light[:, None, None, None]
    changed = moved.clamp(0, 255).round().to(torch.uint8)
    return ArrayDataset(changed, images.labels, images.mean, images.std)


def judged(data: DataSource, split: str) -> tuple[DataSource, ArrayDataset]:
    """The data with a validation split that the dense network doesn't know, and what the result is judged on."""
    held = unfamiliar(data.validation)
    cut = min(CHOSEN_ON, len(held) // 2)
    chosen = replace(data, validation=held.subset(torch.arange(cut)))
    return chosen, data.test if split == "test" else held.subset(torch.arange(cut, len(held)))


def network(
    args: argparse.Namespace, dense: nn.Module, data: DataSource, label: str, repair: bool, seed: int, folder: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """The pruned network, from the cache if it was made before."""
    words = (args.model, args.groups, args.budget, args.examples, args.exponent, label, repair, seed, args.steps)
    path = folder / ("repair_recovery_" + "_".join(map(str, words)).translate(str.maketrans("<=% ", "----")) + ".pt")
    if not path.exists():
        start = time.perf_counter()
        shared = Allocation(round_to=1, cost_exponent=args.exponent) if repair and args.exponent is not None else None
        result = pruned(args, dense, data, label, repair, seed, shared)
        told = {"pruning_seconds": time.perf_counter() - start, "plan": result.plan.to_json()}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({**told, "weights": result.model.state_dict()}, path)
    stored = torch.load(path, weights_only=True)
    plan = prunus.Plan.from_json(stored["plan"])
    model = prunus.apply_(copy.deepcopy(dense), plan, data.example_inputs)
    model.load_state_dict(stored["weights"])
    share = plan.after.macs / plan.before.macs
    return model, {"macs": share, "pruning_seconds": stored["pruning_seconds"]}


def one(
    model: nn.Module, dense: nn.Module, data: DataSource, judged_on: ArrayDataset, config: FinetuneConfig
) -> dict[str, Any]:
    """One recovery, judged."""
    stages: dict[str, Evaluation] = {}
    batches = Batches(data.train, 64, shuffle=True, seed=config.seed, augment=data.augment)
    start = time.process_time()
    failed = recover(model, dense, data, config, batches, stages, [])
    seconds = time.process_time() - start
    found = evaluate(model, judged_on)
    return {
        "accuracy": found.accuracy,
        "loss": found.loss,
        "validation": {name: [stage.accuracy, stage.loss] for name, stage in stages.items()},
        "failed": None if failed is None else failed.what,
        "seconds": round(seconds, 1),
    }


def table(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """A line for each method, with and without repair; a column for each length and kind of recovery."""
    columns = [(e, bool(labels), recipe) for e in args.epochs for labels in args.labels for recipe in args.recipes]
    names = [f"{e:g} epochs, {'labels' if labels else 'none'}{' ' * bool(r)}{r}" for e, labels, r in columns]
    lines = [f"| method | repair | at once | {' | '.join(names)} |", "|---|---|---|" + "---|" * len(names)]
    for label in args.only:
        for repair in map(bool, args.repair):
            mine = [r for r in rows if r["label"] == label and r["repair"] == repair]
            at_once = {r["seed"]: r["one_shot"] for r in mine}
            cells = [mean_std(list(at_once.values())) if at_once else ""]
            for e, labels, recipe in columns:
                keys = {"epochs": e, "labels": labels, "recipe": recipe}
                found = [r["accuracy"] for r in mine if all(r[k] == v for k, v in keys.items())]
                cells.append(f"{mean_std(found)} ({len(found)})" if found else "")
            lines.append(f"| {label} | {'yes' if repair else 'no'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = Parser(__doc__, only=["l1"], examples=32, epochs=[1.0], exponent=1.0, batch=16)
    parser.add_argument("--model", choices=DEPTHS, default="resnet20")
    parser.add_data("CIFAR-10's binary version")
    parser.add_weights("akamaster's checkpoint")
    parser.add_cache()
    parser.add_seeds(0)
    parser.add_split()
    parser.add_argument("--budget", default="macs<=50%")
    parser.add_argument("--groups", choices=("inner", "all"), default="inner")
    parser.add_argument("--examples", type=int, default=1000, help="training images that pruning and repair look at")
    parser.add_argument(
        "--exponent",
        type=float,
        help="of the cost, for repaired networks in place of `auto`, whose search takes minutes a method",
    )
    parser.add_argument("--steps", type=int, default=300, help="steps of the methods that learn a posterior")
    parser.add_argument("--only", nargs="*", default=list(METHODS), help="methods")
    parser.add_argument("--repair", nargs="*", type=int, default=[1, 0], choices=(0, 1))
    parser.add_argument("--labels", nargs="*", type=int, default=[1, 0], choices=(0, 1), help="0: none are looked at")
    parser.add_argument("--epochs", nargs="*", type=float, default=[0.1, 1.0])
    parser.add_argument("--recipes", nargs="*", default=[""], help="settings of the recovery: NAME=VALUE,NAME=VALUE")
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dense = resnet(DEPTHS[args.model], args)
    data, judged_on = judged(cifar10(args), args.split)
    log = Log(results() / f"repair_recovery_{args.model}_{args.split}.jsonl")
    name = f"{args.model} {args.groups} {args.budget} {args.examples}"
    print(f"dense, where epochs are chosen: {evaluate(dense, data.validation)}")
    cells: list[dict[str, Any]] = [
        {"epochs": epochs, "labels": bool(labels), "recipe": recipe}
        for epochs in args.epochs
        for labels in args.labels
        for recipe in args.recipes
    ]
    for seed in args.seeds:
        for label in args.only:
            for repair in map(bool, args.repair):
                model, told = network(args, dense, data, label, repair, seed, cache_of(args))
                key = {"name": name, "seed": seed, "label": label, "repair": repair, "exponent": args.exponent}
                wanted = [w for w in cells if not log.has(key | w)]
                if wanted:
                    told["one_shot"] = evaluate(model, judged_on).accuracy
                for cell in wanted:
                    asked = [part for part in cell["recipe"].split(",") if part]
                    ways = {"epochs": cell["epochs"], "batch_size": args.batch, "seed": seed}
                    config = FinetuneConfig(**ways | values_of(FinetuneConfig, asked))
                    taught = data if cell["labels"] else replace(data, loss_fn=DenseOutputs())
                    found = one(copy.deepcopy(model), dense, taught, judged_on, config)
                    log.add({**key, **cell, **told, **found})
    rows = [r for r in log.rows if r["name"] == name and r["seed"] in args.seeds and r["exponent"] == args.exponent]
    print(table(rows, args))


if __name__ == "__main__":
    main()
