"""LeNet on MNIST (bar A3): 10-20-100-25 at the paper code's counts 8-9-36-17, LeNet-5-Caffe at 400 K MACs by budget.

    python benchmarks/lenet_mnist.py --data DIR [--split test] [--method rbp]

DIR holds the idx files. The dense networks are trained here, one per seed, and cached outside the repository.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from compare_methods import Entry, Setting, run, table
from compare_natural import run_natural, table_natural
from given import brief, mnist
from nets import LeNet300, SmallLeNet
from options import Parser, cache_of
from prunus.data.datasets import DataSource
from prunus.data.evaluation import evaluate
from prunus.methods import METHODS
from prunus.methods.base import StagedMethod
from prunus.methods.criteria import FPGM, L1, L2, BatchNormScale, Fisher, Random, Taylor
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.pipeline.demo import LeNet5
from prunus.plan.allocation import Allocation
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.finetuning import finetune
from prunus.runtime.processes import rank
from record import results

DENSE = FinetuneConfig(epochs=12, lr=0.05, batch_size=128)
PERCEPTRON = FinetuneConfig(epochs=30, lr=0.1, batch_size=128, weight_decay=1e-3, label_smoothing=0.1)
"""Training of the dense networks; the perceptron overfits with the first (1.68 against 1.20 % on validation)."""
BETA = {
    "lenet300": {"rbp": 6.0, "sbp": 6.0, "vib": 12.0, "l0": 60.0},
    "lenet5": {"rbp": 50.0, "rbp per position": 2.0, "sbp": 50.0, "vib": 3.0, "l0": 1500.0},
}
"""Strength of the complexity, chosen on validation (seed 0): of those tried, the one nearest in size to rbp."""
PAPER_COUNTS = {"conv1": 8, "conv2": 9, "fc1": 36, "fc2": 17}


def entries(batch_norm: bool) -> list[Entry]:
    """The methods, each with the allocation that served it best at once on the validation split (seed 0)."""
    uniform = Allocation(scope="uniform")
    found = [
        Entry("dirichlet MC", brief(DirichletPruning())),
        Entry("dirichlet point", brief(DirichletPruning(estimator="point"))),
        Entry("random", Random()),
        Entry("L1", L1()),
        Entry("L2", L2()),
        Entry("FPGM", FPGM()),
        Entry("Taylor", Taylor(), uniform),
        Entry("Fisher", Fisher()),
    ]
    return [*found, Entry("BN scale", BatchNormScale())] if batch_norm else found


def trained(
    make: Callable[[], nn.Module], name: str, data: DataSource, cache: Path, config: FinetuneConfig
) -> Callable[[int], nn.Module]:
    """The dense network of a seed, from the cache or trained now (an interrupted training goes on)."""

    def of_seed(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = make()
        path = cache / f"{name}-{config.epochs}-{seed}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        cache.mkdir(parents=True, exist_ok=True)
        epochs_so_far = path.with_suffix(".training")
        finetune(model, data, replace(config, seed=seed), progress=False, checkpoint=epochs_so_far, resume=True)
        if rank() == 0:
            torch.save(model.state_dict(), path)
        return model.eval()

    return of_seed


def laid_out(dense_of_seed: Callable[[int], nn.Module], channels_last: bool) -> Callable[[int], nn.Module]:
    """The same networks, their weights channels-last (in which all that follows then runs) or contiguous."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return lambda seed: dense_of_seed(seed).to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def natural_methods(net: str, epochs: int, strengths: Sequence[float] | None = None) -> dict[str, StagedMethod]:
    """The methods that decide by themselves; those that learn three groups at once get the epochs of three stages.

    `strengths` replaces the chosen strength of each, and the labels then name it (to choose on validation).
    """
    whole: dict[str, Any] = {"epochs": 3 * epochs, "tune_epochs": 3, "simultaneous": True}
    makers: dict[str, Callable[..., StagedMethod]] = {
        "rbp": partial(RecursiveBayesianPruning, epochs=epochs, complexity_per="unit"),
        "rbp per position": partial(RecursiveBayesianPruning, epochs=epochs, complexity_per="position"),
        "rbp, all layers at once": partial(RecursiveBayesianPruning, complexity_per="unit", **whole),
        **{
            name: partial(METHODS[name], complexity_per="position" if name == "vib" else "unit", **whole)
            for name in ("sbp", "bmrs", "vib", "l0")
        },
    }
    if strengths is None:
        return {label: make(beta=BETA[net].get(label, BETA[net]["rbp"])) for label, make in makers.items()}
    return {f"{label}, kappa {k:g}": make(beta=k) for label, make in makers.items() for k in strengths}


def natural(args: argparse.Namespace, data: DataSource, recovery: FinetuneConfig | None) -> None:
    """Bar B2: LeNet-300-100 and LeNet-5, as much as the noise itself removes; SBP, VIB and L0 beside it."""
    if recovery is None:
        raise SystemExit("--method rbp needs --epochs of at least 1")
    for name, make, config in (
        ("lenet300", partial(LeNet300, select_pixels=True), PERCEPTRON),
        ("lenet5", LeNet5, replace(DENSE, epochs=args.train_epochs)),
    ):
        if args.nets and name not in args.nets:
            continue
        dense_of_seed = laid_out(trained(make, name, data, cache_of(args), config), args.channels_last)
        methods = natural_methods(name, args.noise_epochs, args.beta)
        methods = {k: v for k, v in methods.items() if not args.only or k.split(", kappa")[0] in args.only}
        log = results() / f"lenet_mnist_rbp_{args.split}.jsonl"
        rows = run_natural(f"{name} {args.split}", dense_of_seed, data, methods, recovery, args.seeds, log, args.split)
        print(f"\n{name}\n{table_natural(rows, list(methods))}\n", flush=True)


def main() -> None:
    parser = Parser(
        __doc__, only=["dirichlet MC", "L1", "Taylor", "rbp", "sbp"], noise_epochs=1, train_epochs=1, epochs=1
    )
    parser.add_data("MNIST's idx files")
    parser.add_argument("--method", choices=("dirichlet", "rbp"), default="dirichlet")
    parser.add_argument("--only", nargs="*", help="labels of the methods to run")
    parser.add_argument("--nets", nargs="*", choices=("lenet300", "lenet5"), help="of --method rbp; all by default")
    parser.add_argument(
        "--beta", "--kappa", type=float, nargs="+", help="strengths to try, with --method rbp --split validation"
    )
    parser.add_argument(
        "--channels-last", action="store_true", help="with --method rbp: this layout (LeNet-5 is faster on AVX-512)"
    )
    parser.add_argument("--noise-epochs", type=int, default=6, help="of every stage of rbp and its relatives")
    parser.add_cache()
    parser.add_seeds(0, 1, 2)
    parser.add_split()
    parser.add_argument("--train-epochs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--learning-examples", type=int, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = mnist(args)
    judged = data.test if args.split == "test" else data.validation
    layout: bool | Literal["auto"] = True if args.channels_last else "auto"
    recovery = None
    if args.epochs:
        recovery = FinetuneConfig(epochs=args.epochs, lr=args.lr, batch_size=128, channels_last=layout)
    if args.method == "rbp":
        natural(args, data, recovery)
        return
    jobs = (
        ("small", lambda: SmallLeNet(dropout=0.1), True, {"counts": PAPER_COUNTS}),
        ("lenet5", LeNet5, False, {"budget": "macs<=400K"}),
    )
    for name, make, batch_norm, asked in jobs:
        dense_of_seed = trained(make, name, data, cache_of(args), replace(DENSE, epochs=args.train_epochs))
        setting = Setting(
            keep=lambda _: True,
            recovery=recovery,
            learning_examples=args.learning_examples,
            split=args.split,
            **asked,  # type: ignore[arg-type]
        )
        chosen = [e for e in entries(batch_norm) if not args.only or e.label in args.only]
        dense = [100 - evaluate(dense_of_seed(s), judged).accuracy for s in args.seeds]
        rows = run(
            f"{name} {args.split}", dense_of_seed, data, chosen, setting, args.seeds,
            results() / f"lenet_mnist_{args.split}.jsonl",
        )  # fmt: skip
        print(
            f"\n{name}: dense test error {[round(d, 2) for d in dense]}\n{table(rows, chosen, error=True)}\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
