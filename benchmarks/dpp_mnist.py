"""Exactly k weights per neuron or filter on MNIST (bar C2): LeNet-300-100 and LeNet-5 at 90, 95 and 98 % zeros.

    python benchmarks/dpp_mnist.py --data DIR [--split test] [--nets lenet300] [--sparsities 95]

DIR holds the idx files. Every method starts from the same trained dense network and trains equally long with the same
optimiser; `magnitude` and `random` fix their mask at the start. One line per run goes to a log that is resumed.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from lenet_mnist import DENSE, PERCEPTRON, trained
from nets import LeNet300
from prunus.datasets import Batches
from prunus.demo import LeNet5
from prunus.evaluate import evaluate
from prunus.fit_masks import fit_masks
from prunus.methods.dpp import DynamicProbabilisticPruning
from prunus.sources import load_data
from record import RESULTS, mean_std, provenance

NETS = {"lenet300": (partial(LeNet300, select_pixels=True), PERCEPTRON), "lenet5": (LeNet5, DENSE)}
LAYERS = {"lenet300": ["fc1", "fc2"], "lenet5": ["conv1", "conv2", "fc1"]}


def methods(pattern: str, epochs: int, args: argparse.Namespace) -> dict[str, DynamicProbabilisticPruning]:
    """Dynamic probabilistic pruning, and fixed masks with the same training."""
    own = DynamicProbabilisticPruning(
        pattern=pattern, epochs=round(epochs * args.drawing), lr=args.lr, logit_lr_mult=args.mult, prior=args.prior,
        noise_scale=(args.noise, 0.1 * args.noise),
    )  # fmt: skip
    own = replace(own, tune_epochs=epochs - own.epochs)
    fixed = replace(own, epochs=0, tune_epochs=epochs)
    return {
        "dpp": own,
        "magnitude": replace(fixed, prior=1.0, init_std=0.0),
        "random": replace(fixed, prior=0.0, init_std=1.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--sparsities", type=float, nargs="+", default=[90, 95, 98])
    parser.add_argument("--methods", nargs="+", default=["dpp", "magnitude", "random"])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "prunus-bench")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--drawing", type=float, default=0.6, help="share of the epochs in which masks are drawn")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--mult", type=float, default=10.0, help="step of the logits in steps of the weights")
    parser.add_argument("--prior", type=float, default=1.0)
    parser.add_argument("--noise", type=float, default=1.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(f"mnist:{args.data}", validation=5000, seed=0)
    judged = data.test if args.split == "test" else data.validation
    log = RESULTS / f"dpp_mnist_{args.split}.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for net in args.nets:
        make, config = NETS[net]
        dense_of_seed = trained(make, net, data, args.cache, config)
        for seed in args.seeds:
            dense = dense_of_seed(seed)
            dense_error = 100 - evaluate(dense, judged).accuracy
            for sparsity in args.sparsities:
                for label, method in methods(f"weight {100 - sparsity:g}%", args.epochs, args).items():
                    key = {"net": net, "seed": seed, "sparsity": sparsity, "label": label, "settings": repr(method)}
                    if label not in args.methods or any(all(r[k] == v for k, v in key.items()) for r in rows):
                        continue
                    batches = Batches(data.train, 128, shuffle=True, seed=seed)
                    start = time.perf_counter()
                    found = fit_masks(
                        dense, LAYERS[net], method, batches, data.loss_fn,
                        judge=Batches(data.validation, 500), seed=seed, progress=False,
                    )  # fmt: skip
                    last = found.history[-1] if found.history else None
                    row = {
                        **key,
                        "error": 100 - evaluate(found.model, judged).accuracy,
                        "dense_error": dense_error,
                        "confidence": None if last is None else dict(last.confidence),
                        "flips": None if last is None else dict(last.flips),
                        "sampled_loss": found.sampled_loss,
                        "fixed_loss": found.fixed_loss,
                        "seconds": round(time.perf_counter() - start, 1),
                        "provenance": provenance(),
                    }
                    rows.append(row)
                    with log.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print({k: v for k, v in row.items() if k not in ("provenance", "settings")}, flush=True)
        print(f"\n{net}\n| zeros | {' | '.join(args.methods)} |\n|---|{'---|' * len(args.methods)}")
        for sparsity in args.sparsities:
            wanted = {label: repr(m) for label, m in methods(f"weight {100 - sparsity:g}%", args.epochs, args).items()}
            cells = [
                mean_std([r["error"] for r in rows if r["net"] == net and r["settings"] == wanted[label]
                          and r["label"] == label and r["seed"] in args.seeds])
                for label in args.methods
            ]  # fmt: skip
            print(f"| {sparsity:g} % | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
