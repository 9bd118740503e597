"""Methods that decide by themselves how much goes, with their defaults and one setting for all networks (bar I12).

    python benchmarks/natural_defaults.py --nets lenet300-digits lenet5-digits [--methods rbp sbp] [--split test]
    python benchmarks/natural_defaults.py --nets lenet300-mnist lenet5-mnist --mnist DIR
    python benchmarks/natural_defaults.py --nets resnet20 --cifar DIR --weights FILE

No strength is given. The LeNets are trained here, one per seed, and cached outside the repository; a pass of a stage
of ResNet-20 sees `--steps` batches of `--batch-size` images. Error, MACs and structure after the recovery.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compare_natural import run_natural, table_natural
from given import cifar10, mnist, resnet
from lenet_mnist import DENSE, PERCEPTRON, laid_out, trained
from nets import LeNet300
from options import Parser, cache_of
from prunus.data.datasets import DataSource
from prunus.data.sources import load_data
from prunus.methods import METHODS
from prunus.methods.base import StagedMethod
from prunus.pipeline.demo import LeNet5
from prunus.recovery.config import FinetuneConfig
from record import results

NETS = ("lenet300-digits", "lenet5-digits", "lenet300-mnist", "lenet5-mnist", "resnet20")
MAKERS: dict[str, Callable[[], nn.Module]] = {"lenet300": LeNet300, "lenet5": LeNet5}
TRAINED = {"digits": 40, "mnist": {"lenet300": 20, "lenet5": 12}}
"""Epochs of the dense networks."""


def lenet(name: str, args: argparse.Namespace) -> tuple[Callable[[int], nn.Module], DataSource]:
    """The dense networks by seed, and their data."""
    kind, place = name.split("-")
    data = load_data("digits", seed=0) if place == "digits" else mnist(Namespace(args, args.mnist))
    epochs: Any = TRAINED[place]
    epochs = args.train_epochs or (epochs if isinstance(epochs, int) else epochs[kind])
    recipe = PERCEPTRON if kind == "lenet300" else replace(DENSE, clip_grad_norm=1.0)
    fresh = trained(MAKERS[kind], f"{kind}-{place}", data, cache_of(args), replace(recipe, epochs=epochs))
    return laid_out(fresh, channels_last=kind == "lenet5"), data


def residual(args: argparse.Namespace) -> tuple[Callable[[int], nn.Module], DataSource]:
    """ResNet-20, the same for every seed, and CIFAR-10."""
    dense = resnet(20, args)
    return lambda _: copy.deepcopy(dense), cifar10(Namespace(args, args.cifar))


class Namespace(argparse.Namespace):
    """The options with `data` put in."""

    def __init__(self, args: argparse.Namespace, data: str | None) -> None:
        super().__init__(**{**vars(args), "data": data})


def main() -> None:
    parser = Parser(
        __doc__, nets=["lenet300-mnist", "resnet20"], methods=["rbp"], train_epochs=1, epochs=1, steps=1, batch_size=16
    )
    parser.add_argument("--nets", nargs="+", choices=NETS, required=True)
    parser.add_argument("--methods", nargs="+", default=["rbp"], choices=("rbp", "sbp", "bmrs", "vib", "l0"))
    parser.add_argument("--mnist", metavar="DIR", help="MNIST's idx files")
    parser.add_argument("--cifar", metavar="DIR", help="CIFAR-10's binary version")
    parser.add_argument("--weights", metavar="FILE", help="akamaster's checkpoint of ResNet-20")
    parser.add_argument("--train-epochs", type=int, help="of the dense LeNets; as long as they gain by default")
    parser.add_argument("--epochs", type=int, default=10, help="of the recovery")
    parser.add_argument("--lr", type=float, default=0.05, help="of the recovery")
    parser.add_argument("--steps", type=int, default=None, help="batches in a pass of a stage; all by default")
    parser.add_argument("--batch-size", type=int, default=64, help="of a stage")
    parser.add_argument("--models", type=Path, help="folder for what was made, to be judged on the test split later")
    parser.add_cache()
    parser.add_seeds(0, 1, 2)
    parser.add_split()
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.nets:
        fresh, data = residual(args) if name == "resnet20" else lenet(name, args)
        layout = not name.startswith("lenet300")
        recovery = FinetuneConfig(
            epochs=args.epochs, lr=args.lr, batch_size=128, clip_grad_norm=1.0, channels_last=layout
        )
        methods: dict[str, StagedMethod] = {m: METHODS[m]() for m in args.methods}  # type: ignore[misc]
        rows = run_natural(
            f"{name} {args.split}", fresh, data, methods, recovery, args.seeds,
            results() / f"natural_defaults_{args.split}.jsonl", args.split, args.batch_size, args.steps, args.models,
        )  # fmt: skip
        dense = [round(r["dense_error"], 2) for r in rows]
        print(f"\n{name}: dense error {dense}\n{table_natural(rows, list(methods))}", flush=True)


if __name__ == "__main__":
    main()
