"""Dirichlet settings against cheap criteria on a trained CIFAR-10 ResNet, measured on held-out training images.

    python benchmarks/dirichlet_defaults.py --data CIFAR_BINARY_DIR --weights resnet20.th [--images 10000] [--inner]

Learns every configuration on a subset of the training images, prunes to the budget, and prints one row each: accuracy
at once, and after batch norm's statistics are re-estimated. The test images are never looked at.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch

from given import brief, cifar10, resnet
from options import Parser
from prunus.data.datasets import Batches
from prunus.data.evaluation import evaluate
from prunus.methods.base import Method
from prunus.methods.criteria import L1, Fisher, Random, Taylor
from prunus.methods.dirichlet import DirichletPruning
from prunus.pipeline.prune import prune
from prunus.plan.allocation import Allocation
from prunus.recovery.batchnorm import reestimate_batch_norm
from record import write

METHODS: dict[str, Method] = {
    "random": Random(),
    "L1": L1(),
    "Taylor": Taylor(),
    "Fisher": Fisher(),
    "Dirichlet, default": DirichletPruning(),
    "Dirichlet, point": DirichletPruning(estimator="point"),
    "Dirichlet, relative to the best unit": DirichletPruning(scale="max"),
    "Dirichlet, true KL": DirichletPruning(beta=1.0),
    "Dirichlet, little noise": DirichletPruning(init_concentration=30.0),
    "Dirichlet, much noise": DirichletPruning(init_concentration=1.0),
}


def main() -> None:
    parser = Parser(__doc__, methods=["L1", "Taylor", "Dirichlet, default"], images=32, batch=32, cost_exponent=[1.0])
    parser.add_data("CIFAR-10's binary version")
    parser.add_weights("checkpoint of the ResNet-20")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--images", type=int, default=10_000, help="training images to learn from")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--budget", default="macs<=50%")
    parser.add_argument("--cost-exponent", type=float, nargs="*", default=[0.0, 0.5, 1.0])
    parser.add_argument("--inner", action="store_true", help="leave the residual streams alone")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = cifar10(args)
    model = resnet(20, args)
    order = torch.randperm(len(source.train), generator=torch.Generator().manual_seed(args.seed))
    learned = source.train.subset(order[: args.images])
    batches = Batches(learned, args.batch, shuffle=True, seed=args.seed, augment=source.augment)
    plain = Batches(learned, 128)
    streams = ["conv1", "layer2.0.conv2", "layer3.0.conv2"] if args.inner else []
    rows: list[dict[str, Any]] = []
    for name, method in ((n, METHODS[n]) for n in args.methods):
        for exponent in args.cost_exponent:
            result = prune(
                model,
                source.example_inputs,
                method=brief(method),
                target=args.budget,
                data=batches,
                loss_fn=source.loss_fn,
                ignored_layers=streams,
                allocation=Allocation(cost_exponent=exponent),
                seed=args.seed,
                progress=False,
            )
            at_once = evaluate(result.model, source.validation).accuracy
            reestimate_batch_norm(result.model, plain, num_batches=20)
            again = evaluate(result.model, source.validation).accuracy
            rows.append({"name": name, "config": asdict(method), "cost_exponent": exponent, "at_once": at_once,
                         "reestimated": again})  # fmt: skip
            print(f"{name:60s} {exponent:4.1f} {at_once:6.2f} {again:6.2f}", flush=True)
    settings = {key: value for key, value in vars(args).items() if key not in ("data", "weights", "smoke")}
    print(json.dumps(settings), write("dirichlet_defaults", {"settings": settings, "rows": rows}).name)


if __name__ == "__main__":
    main()
