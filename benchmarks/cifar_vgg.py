"""VGG-16-BN on CIFAR-10, threshold-free recursive Bayesian pruning (bar B4).

    python benchmarks/cifar_vgg.py --data DIR [--split test] [--train-epochs 30] [--device cuda]
    torchrun --nproc_per_node 2 benchmarks/cifar_vgg.py --data DIR --train-epochs 8 --train-only

DIR holds CIFAR-10's binary version. The dense network is trained here and cached outside the repository; an interrupted
training goes on. `--train-epochs 8` is the CPU-sized schedule (`training_speed.py` says how long an epoch takes), the
defaults want a GPU. Several values of `--beta` are for the validation split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import nn

import prunus
from compare_methods import Entry, Setting
from compare_natural import run_natural, table_natural
from compare_staged import run_others, staged_cost, table_at_equal_cost
from given import cifar10
from lenet_mnist import trained
from nets import VGG_DENSE, CifarVGG16
from options import Parser, cache_of
from prunus.data.datasets import DataSource
from prunus.data.evaluation import evaluate
from prunus.methods.base import ComplexityPer
from prunus.methods.criteria import L1
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.plan.allocation import Allocation
from prunus.plan.cost import count_cost
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.finetuning import finetune
from record import Log, results

TINY = (8,) * len(VGG_DENSE)


def main() -> None:
    parser = Parser(__doc__, train_epochs=1, epochs=1, steps=1)
    parser.add_data("CIFAR-10's binary version")
    parser.add_cache()
    parser.add_seeds(0, 1, 2)
    parser.add_split()
    parser.add_argument("--train-epochs", type=int, default=60)
    parser.add_argument("--train-only", action="store_true", help="stop once the dense networks are in the cache")
    parser.add_argument(
        "--control", action="store_true", help="prune nothing: the dense networks trained on with the recovery's recipe"
    )
    parser.add_argument(
        "--l1-at", type=float, help="instead: L1, the same share of every layer, at so many per cent of the MACs"
    )
    parser.add_argument("--total", type=float, default=2.5, help="cost with --l1-at, in epochs of the dense network")
    parser.add_argument("--beta", "--kappa", type=float, nargs="+", default=[10.0])
    parser.add_argument("--complexity-per", choices=get_args(ComplexityPer), default="unit")
    parser.add_argument("--noise-epochs", type=int, default=1, help="passes of a stage with noise")
    parser.add_argument("--tune-epochs", type=int, default=1, help="passes of a stage without")
    parser.add_argument("--steps", type=int, default=None, help="batches in a pass of a stage; all without it")
    parser.add_argument("--batch-size", type=int, default=128, help="of the stages")
    parser.add_argument("--noise-lr", type=float, default=0.03)
    parser.add_argument("--weight-lr", type=float, default=5e-4)
    parser.add_argument("--epochs", type=int, default=20, help="of the recovery")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--distillation", type=float, default=0.5, help="of the recovery; 0 spares the dense network")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    data, cache = cifar10(args), cache_of(args)
    network = partial(CifarVGG16, TINY) if args.smoke else CifarVGG16
    config = FinetuneConfig(epochs=args.train_epochs, lr=0.05, batch_size=128)
    trained_of_seed = trained(network, "vgg16", data, cache, config)

    def dense_of_seed(seed: int) -> nn.Module:
        return trained_of_seed(seed).to(args.device)

    if args.train_only:
        for seed in args.seeds:
            dense_of_seed(seed)
        return
    methods = {
        f"rbp, kappa {beta:g} per {args.complexity_per}": RecursiveBayesianPruning(
            beta=beta,
            complexity_per=args.complexity_per,
            epochs=args.noise_epochs,
            tune_epochs=args.tune_epochs,
            lr=args.noise_lr,
            weight_lr=args.weight_lr,
        )
        for beta in args.beta
    }
    recovery = FinetuneConfig(epochs=args.epochs, lr=args.lr, distillation=args.distillation)
    schedule = f"{args.train_epochs} epochs, recovery {args.epochs} at {args.lr:g} x {args.distillation:g}"
    name, log = f"vgg16 {schedule}, {args.split}", results() / f"cifar_vgg16_{args.split}.jsonl"
    if args.control:
        trained_on(name, dense_of_seed, data, recovery, args.seeds, log, args.split)
        return
    if args.l1_at is not None:
        setting = Setting(
            keep=lambda _: True, budget=f"macs<={args.l1_at:g}%", recovery=recovery, split=args.split,
            learning_examples=len(data.train),
        )  # fmt: skip
        entry, others = Entry("L1", L1(), Allocation(scope="uniform")), log.with_stem(f"{log.stem}_others")
        start = f"vgg16 of {args.train_epochs} epochs"
        found = run_others(start, dense_of_seed, data, [entry], setting, args.total, args.seeds, others)
        print(table_at_equal_cost(found, ["L1"]))
        return
    rows = run_natural(
        name, dense_of_seed, data, methods, recovery, args.seeds, log, args.split, args.batch_size, args.steps,
        cache / "vgg16-pruned",
    )  # fmt: skip
    graph = prunus.trace(network(), data.example_inputs)
    for row in rows:
        method = methods[row["label"]]
        share = 1.0 if args.steps is None else args.steps * args.batch_size / len(data.train)
        kept = {name: range(units) for name, units in row["kept"].items()}
        stages = [list(kept)] if method.simultaneous else [[name] for name in kept]
        spent = staged_cost(graph, stages, kept, method, share)
        whole = spent + args.epochs * row["macs"] / count_cost(graph).macs
        print(f"seed {row['seed']}, {row['label']}: dense error {row['dense_error']:.2f} %; stages cost {spent:.2f} "
              f"epochs of the dense network, with the recovery {whole:.2f}")  # fmt: skip
    print(table_natural(rows, list(methods)))


def trained_on(
    name: str,
    dense_of_seed: Callable[[int], nn.Module],
    data: DataSource,
    recovery: FinetuneConfig,
    seeds: Sequence[int],
    log: Path,
    split: str,
) -> None:
    """What the recovery's epochs do for the network that nothing was removed from: the fair dense error."""
    runs, judged = Log(log), data.test if split == "test" else data.validation
    for seed in seeds:
        key = {"name": name, "seed": seed, "label": "dense, trained on", "settings": repr(recovery)}
        if runs.has(key):
            continue
        model = dense_of_seed(seed)
        before = 100 - evaluate(model, judged).accuracy
        finetune(model, data, replace(recovery, seed=seed), progress=False)
        errors = {
            n: 100 - evaluate(model, d).accuracy for n, d in (("error", judged), ("validation_error", data.validation))
        }
        runs.add({**key, "dense_error": before, **errors, "split": split}, "settings")


if __name__ == "__main__":
    main()
