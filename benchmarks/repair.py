"""Methods with and without repair: one-shot accuracy of ResNets at a budget, no label, no gradient on weights (I2, I3).

    python benchmarks/repair.py --model resnet20 --data DIR --weights FILE --budget "macs<=50%" [--split test]

Selection, allocation and repair all see the same few training images, without their labels. DIR holds the binary
version of CIFAR-10, FILE the checkpoint (akamaster's). `--groups inner`: the channels inside of residual blocks alone.
While settings are chosen the split is `validation`: held-out training images, shifted and flipped, since the shared
checkpoints know the training images themselves by heart.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import prunus
from given import brief, cifar10, resnet
from options import Parser
from prunus.data.datasets import ArrayDataset, Batches, DataSource, crop_and_flip
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.evaluation import evaluate
from prunus.methods.base import Method, PosteriorMethod
from prunus.methods.registry import resolve
from prunus.pipeline.prune import Result
from prunus.plan.allocation import Allocation
from record import Log, mean_std, results

DEPTHS = {"resnet20": 20, "resnet32": 32, "resnet56": 56}
METHODS = ("dirichlet", "fisher", "taylor", "l1", "random")


def judged_on(data: DataSource, split: str) -> ArrayDataset:
    """What accuracy is measured on."""
    if split == "test":
        return data.test
    held = data.validation
    moved = crop_and_flip(held.inputs, torch.Generator().manual_seed(0))
    return ArrayDataset(moved, held.labels, held.mean, held.std)


def inner_alone(model: nn.Module) -> list[str]:
    """Layers whose outputs stay so that only the first convolution of each block loses channels."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not (name.endswith("conv1") and "." in name)
    ]


def method_of(name: str, args: argparse.Namespace) -> Method:
    """A method as it is, with few steps in a smoke run."""
    found = resolve(name)
    return brief(replace(found, min_steps=args.steps)) if isinstance(found, PosteriorMethod) else found


def pruned(
    args: argparse.Namespace,
    dense: nn.Module,
    data: DataSource,
    name: str,
    repair: bool,
    seed: int,
    allocation: Allocation | None = None,
) -> Result:
    """A method's network at the budget, repaired or not, from a few training images without labels."""
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[: args.examples]
    few = data.train.subset(chosen)
    return prunus.prune(
        dense,
        data.example_inputs,
        method=method_of(name, args),
        target=args.budget,
        data=Batches(few, 64, shuffle=True, seed=seed),
        loss_fn=DenseOutputs(),
        ignored_layers=inner_alone(dense) if args.groups == "inner" else (),
        allocation=allocation or Allocation(round_to=1),
        repair=repair,
        seed=seed,
        progress=False,
    )


def one(
    args: argparse.Namespace, dense: nn.Module, data: DataSource, name: str, repair: bool, seed: int
) -> dict[str, Any]:
    """One cell of the table."""
    start = time.perf_counter()
    result = pruned(args, dense, data, name, repair, seed)
    seconds = time.perf_counter() - start
    found = evaluate(result.model, judged_on(data, args.split))
    return {
        "accuracy": found.accuracy,
        "loss": found.loss,
        "macs": result.plan.after.macs / result.plan.before.macs,
        "params": result.plan.after.params / result.plan.before.params,
        "kept": [len(g.kept) for g in result.plan.groups],
        "seconds": seconds,
        "max_error": result.verification.max_error,
        "left": [r.layer for r in result.refits if r.reason],
    }


def table(rows: list[dict[str, Any]], methods: list[str]) -> str:
    """Mean and standard deviation over seeds, a line a method."""
    lines = ["| method | without repair | with repair | MACs | seconds with repair |", "|---|---|---|---|---|"]
    for name in methods:
        cells = []
        for repair in (False, True):
            mine = [r["accuracy"] for r in rows if r["label"] == name and r["repair"] == repair]
            cells.append(mean_std(mine) if mine else "")
        mine = [r for r in rows if r["label"] == name and r["repair"]]
        macs = f"{100 * sum(r['macs'] for r in mine) / len(mine):.1f} %" if mine else ""
        seconds = f"{sum(r['seconds'] for r in mine) / len(mine):.0f}" if mine else ""
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {macs} | {seconds} |")
    return "\n".join(lines)


def main() -> None:
    parser = Parser(__doc__, only=["l1", "dirichlet"], examples=32)
    parser.add_argument("--model", choices=DEPTHS, default="resnet20")
    parser.add_data("CIFAR-10's binary version")
    parser.add_weights("akamaster's checkpoint")
    parser.add_seeds(0, 1, 2)
    parser.add_split()
    parser.add_argument("--budget", default="macs<=50%")
    parser.add_argument("--groups", choices=("inner", "all"), default="inner")
    parser.add_argument("--examples", type=int, default=1000, help="training images that are looked at")
    parser.add_argument("--steps", type=int, default=300, help="steps of the methods that learn a posterior")
    parser.add_argument("--only", nargs="*", default=list(METHODS), help="methods")
    parser.add_argument(
        "--repair", nargs="*", type=int, default=[0, 1], choices=(0, 1), help="0: without repair, 1: with"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, dense = cifar10(args), resnet(DEPTHS[args.model], args)
    log = Log(results() / f"repair_{args.model}_{args.split}.jsonl")
    name = f"{args.model} {args.groups} {args.budget} {args.examples}"
    print(f"dense: {evaluate(dense, judged_on(data, args.split)).accuracy:.2f} %")
    for seed in args.seeds:
        for label in args.only:
            for repair in map(bool, args.repair):
                key = {"name": name, "seed": seed, "label": label, "repair": repair, "steps": args.steps}
                if not log.has(key):
                    log.add({**key, **one(args, dense, data, label, repair, seed)}, "kept")
    rows = [r for r in log.rows if r["name"] == name and r["seed"] in args.seeds and r["steps"] == args.steps]
    print(table(rows, args.only))


if __name__ == "__main__":
    main()
