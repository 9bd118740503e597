"""ResNet-20 / -56 on CIFAR-10, trained checkpoints, half of the MACs removed (bars A4, A5 and B3).

    python benchmarks/cifar_resnet.py --model resnet20 --data DIR --weights FILE [--method rbp] [--split test]

`--method rbp`: recursive Bayesian pruning, with and without the dependency between layers, beside the others at equal
total training cost.

DIR holds the binary version of CIFAR-10, FILE the checkpoint (akamaster's). While settings are chosen the split is
`validation` (5,000 images cut from the training data); `--split test` is for the final table, once.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compare_methods import Entry, Setting, run, table
from compare_staged import run_others, run_staged, table_at_equal_cost
from given import brief, cifar10, resnet
from options import Parser
from prunus.data.datasets import DataSource
from prunus.methods.base import StagedMethod
from prunus.methods.criteria import FPGM, L1, L2, BatchNormScale, Fisher, Random, Taylor
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.plan.allocation import Allocation
from prunus.recovery.config import FinetuneConfig
from record import results

DEPTHS = {"resnet20": 20, "resnet56": 56}
SMALL = {
    "only": ["dirichlet MC", "L1", "l1, measured", "rbp", "rbp, all layers at once"], "recover": ["L1"], "epochs": 1,
    "steps": 1, "total": 1.5, "learning_examples": 32,
}  # fmt: skip


def entries() -> list[Entry]:
    """Every method with the allocation that served it best on the validation split (docs/dirichlet-defaults.md)."""
    uniform, deep = Allocation(scope="uniform"), Allocation(cost_exponent=2.0)
    measured = Allocation(scope="measured")
    return [
        Entry("dirichlet MC", brief(DirichletPruning()), deep),
        Entry("dirichlet MC, exponent 1", brief(DirichletPruning()), Allocation(cost_exponent=1.0)),
        Entry("dirichlet point", brief(DirichletPruning(estimator="point")), deep),
        Entry("random", Random(), uniform),
        Entry("L1", L1(), uniform),
        Entry("L2", L2(), uniform),
        Entry("BN scale", BatchNormScale(), uniform),
        Entry("FPGM", FPGM(), uniform),
        Entry("Taylor", Taylor(), Allocation(cost_exponent=0.5)),
        Entry("Fisher", Fisher()),
        *(Entry(f"{m.name}, measured", m, measured) for m in (brief(DirichletPruning()), L1(), Taylor())),
    ]


LABELS_AT_EQUAL_COST = ("dirichlet MC", "random", "L1", "Taylor")


def staged_methods(args: argparse.Namespace) -> dict[str, StagedMethod]:
    """Recursive Bayesian pruning, and the same noise learned for all layers at once with the same number of steps."""
    one: dict[str, Any] = {"beta": args.beta, "lr": args.noise_lr, "weight_lr": args.weight_lr}
    groups = 9 if args.model == "resnet20" else 27
    whole = {"simultaneous": True, "epochs": groups * args.noise_epochs, "tune_epochs": groups * args.tune_epochs}
    return {
        "rbp": RecursiveBayesianPruning(epochs=args.noise_epochs, tune_epochs=args.tune_epochs, **one),
        "rbp, all layers at once": RecursiveBayesianPruning(**whole, **one),
    }


def at_equal_cost(
    args: argparse.Namespace, fresh: Callable[[int], nn.Module], data: DataSource, setting: Setting
) -> None:
    """Bar B3."""
    name, log = f"{args.model} {args.budget}", results() / f"cifar_{args.model}_rbp_{args.split}.jsonl"
    methods = {k: v for k, v in staged_methods(args).items() if not args.only or k in args.only}
    rows = run_staged(name, fresh, data, methods, setting, args.total, args.steps, args.seeds, log)
    others = [e for e in entries() if e.label in LABELS_AT_EQUAL_COST and (not args.only or e.label in args.only)]
    log = results() / f"cifar_{args.model}_{args.split}.jsonl"
    rows += run_others(name, fresh, data, others, setting, args.total, args.seeds, log)
    print(table_at_equal_cost(rows, [*methods, *(e.label for e in others)]))


def main() -> None:
    parser = Parser(__doc__, **SMALL)
    parser.add_argument("--model", choices=DEPTHS, default="resnet20")
    parser.add_data("CIFAR-10's binary version")
    parser.add_weights("akamaster's checkpoint")
    parser.add_seeds(0, 1, 2)
    parser.add_split()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--distillation", type=float, default=0.5)
    parser.add_argument("--budget", default="macs<=50%")
    parser.add_argument("--learning-examples", type=int, default=20_000)
    parser.add_argument("--only", nargs="*", help="labels of the methods to run")
    parser.add_argument(
        "--recover", nargs="*", default=["dirichlet MC, exponent 1", "dirichlet MC", "random", "L1", "Taylor"]
    )
    parser.add_argument("--method", choices=("dirichlet", "rbp"), default="dirichlet")
    parser.add_argument("--total", type=float, default=3.0, help="training cost in dense epochs, with --method rbp")
    parser.add_argument("--steps", type=int, default=90, help="batches of 64 in a pass of a stage, with --method rbp")
    parser.add_argument("--noise-epochs", type=int, default=1, help="passes of a stage with noise")
    parser.add_argument("--tune-epochs", type=int, default=1, help="passes of a stage without")
    parser.add_argument("--beta", "--kappa", type=float, default=1.0)
    parser.add_argument("--noise-lr", type=float, default=0.03)
    parser.add_argument("--weight-lr", type=float, default=5e-4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    data = cifar10(args)
    dense = resnet(DEPTHS[args.model], args).to(args.device)

    def fresh(_: int) -> nn.Module:
        return copy.deepcopy(dense)

    recovery = FinetuneConfig(epochs=args.epochs or 1, lr=args.lr, distillation=args.distillation, channels_last=True)
    chosen = [e for e in entries() if not args.only or e.label in args.only]
    setting = Setting(
        keep=lambda name: name.endswith(".conv1"),
        budget=args.budget,
        recovery=recovery if args.epochs else None,
        recovered=tuple(args.recover),
        learning_examples=args.learning_examples,
        split=args.split,
    )
    if args.method == "rbp":
        at_equal_cost(args, fresh, data, setting)
        return
    name = f"{args.model} {args.budget} {args.epochs} epochs {args.split}"
    log = results() / f"cifar_{args.model}_{args.split}.jsonl"
    rows = run(name, fresh, data, chosen, setting, args.seeds, Path(log))
    print(table(rows, chosen))


if __name__ == "__main__":
    main()
