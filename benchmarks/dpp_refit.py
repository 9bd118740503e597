"""Masks inside ResNet-20's weights with and without refitting what they leave: one-shot, and trained on (bar I7).

    python benchmarks/dpp_refit.py --data DIR --weights FILE [--patterns "kernel 25%"] [--epochs 3] [--split test]

DIR holds the binary version of CIFAR-10, FILE akamaster's checkpoint; masks lie on every 3 x 3 convolution but the
first. Without `--epochs` nothing is trained: `magnitude` takes the largest weights, `learned` masks of the frozen
network, both from the same few training images without their labels. With it, the masks and what they leave are trained
for so many epochs of all training images: `magnitude` keeps its masks, `learned` draws for the first `--drawing` of
them. While settings are chosen the split is `validation`: held-out training images, shifted and flipped, since the
checkpoint knows the training images themselves by heart.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

import prunus
from dpp_cifar import layers_of
from given import cifar10, resnet
from options import Parser
from prunus.data.datasets import Batches, DataSource
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.evaluation import evaluate
from prunus.methods.dpp import DynamicProbabilisticPruning
from record import Log, mean_std, results
from repair import judged_on

PATTERNS = ["kernel 25%", "2:4", "weight 10%"]


def method_of(masks: str, pattern: str, args: argparse.Namespace) -> DynamicProbabilisticPruning:
    """How masks come about, and how long they and the weights are trained."""
    common = DynamicProbabilisticPruning(pattern=pattern, lr=args.lr, tune_epochs=args.epochs)
    drawn = round(args.drawing * args.epochs) if args.epochs else args.passes
    if masks == "magnitude":
        return replace(common, epochs=0, init_std=0.0)
    return replace(common, epochs=drawn, tune_epochs=args.epochs - drawn if args.epochs else 0,
                   train_weights=bool(args.epochs), lr=args.lr if args.epochs else args.mask_lr)  # fmt: skip


def one(
    args: argparse.Namespace, dense: nn.Module, data: DataSource, masks: str, pattern: str, refit: bool, seed: int
) -> dict[str, Any]:
    """One cell of the table."""
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[: args.examples]
    batches = Batches(data.train.subset(chosen), 100, shuffle=True, seed=seed)
    if args.epochs:
        batches = Batches(data.train, 128, shuffle=True, seed=seed, augment=data.augment)
    start = time.perf_counter()
    result = prunus.prune(
        dense,
        data.example_inputs,
        method=method_of(masks, pattern, args),
        target=dict.fromkeys(layers_of(dense, pattern), pattern),
        data=prunus.data.Splits(batches, Batches(data.validation, 500)) if args.epochs else batches,
        loss_fn=data.loss_fn if args.labels else DenseOutputs(temperature=args.temperature),
        repair=prunus.RepairConfig(examples=args.examples) if refit else False,
        seed=seed,
        progress=False,
    )
    seconds = time.perf_counter() - start
    assert result.masked is not None
    return {
        "accuracy": evaluate(result.model, judged_on(data, args.split)).accuracy,
        "fixed_loss": result.masked.fixed_loss,
        "refitted": result.masked.refitted,
        "seconds": round(seconds, 1),
        "left": [r.layer for r in result.refits if r.reason],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy in %, mean and standard deviation over seeds, a line for each pattern and origin of the masks."""
    lines = ["| pattern | masks | without refit | with refit |", "|---|---|---|---|"]
    for pattern, masks in dict.fromkeys((r["pattern"], r["masks"]) for r in rows):
        mine = [r for r in rows if (r["pattern"], r["masks"]) == (pattern, masks)]
        cells = [[r["accuracy"] for r in mine if r["refit"] == refit] for refit in (False, True)]
        lines.append(f"| {pattern} | {masks} | " + " | ".join(mean_std(c) if c else "" for c in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = Parser(__doc__, patterns=["kernel 50%"], examples=32, passes=1)
    parser.add_data("CIFAR-10's binary version")
    parser.add_weights("akamaster's checkpoint")
    parser.add_seeds(0, 1, 2)
    parser.add_split()
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--masks", nargs="+", choices=("magnitude", "learned"), default=["magnitude", "learned"])
    parser.add_argument(
        "--refit", nargs="+", type=int, default=[0, 1], choices=(0, 1), help="0: without, 1: with refit"
    )
    parser.add_argument("--examples", type=int, default=1000, help="training images that are looked at")
    parser.add_argument("--passes", type=int, default=20, help="over them in which masks are drawn, one-shot")
    parser.add_argument("--mask-lr", type=float, default=3e-3, help="a tenth of the step of the logits, one-shot")
    parser.add_argument("--epochs", type=int, default=0, help="of training on all images; 0: none, one-shot")
    parser.add_argument("--drawing", type=float, default=0.67, help="share of the epochs in which masks are drawn")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--labels", type=int, default=0, choices=(0, 1), help="0: the dense network's outputs alone")
    parser.add_argument("--temperature", type=float, default=1.0, help="of these outputs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, dense = cifar10(args), resnet(20, args).to(memory_format=torch.channels_last)
    log = Log(results() / f"dpp_refit_{args.split}.jsonl")
    rows = []
    print(f"dense: {evaluate(dense, judged_on(data, args.split)).accuracy:.2f} %")
    for pattern in args.patterns:
        for masks in args.masks:
            for refit in map(bool, args.refit):
                for seed in args.seeds:
                    method = repr(method_of(masks, pattern, args))
                    method += f", temperature {args.temperature:g}" if args.temperature != 1 else ""
                    key = {"pattern": pattern, "masks": masks, "refit": refit, "examples": args.examples,
                           "labels": bool(args.labels), "seed": seed, "settings": method}  # fmt: skip
                    if not log.has(key):
                        log.add({**key, **one(args, dense, data, masks, pattern, refit, seed)}, "settings")
                    rows += [r for r in log.rows if all(r.get(k) == v for k, v in key.items())]
    print(table(rows))


if __name__ == "__main__":
    main()
