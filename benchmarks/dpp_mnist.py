"""Exactly k weights per neuron or filter on MNIST (bar C2): LeNet-300-100 and LeNet-5 at 90, 95 and 98 % zeros.

    python benchmarks/dpp_mnist.py --data DIR [--split test] [--nets lenet300] [--sparsities 95]

DIR holds the idx files. Every method starts from the same trained dense network and trains equally long with the same
optimiser; `magnitude` and `random` fix their mask at the start.
"""

from __future__ import annotations

from functools import partial

import torch

from compare_masks import alike, run_masks, table_masks
from given import mnist
from lenet_mnist import DENSE, PERCEPTRON, laid_out, trained
from nets import LeNet300
from options import Parser, cache_of
from prunus.methods.dpp import DynamicProbabilisticPruning
from prunus.pipeline.demo import LeNet5
from record import results

NETS = {"lenet300": (partial(LeNet300, select_pixels=True), PERCEPTRON), "lenet5": (LeNet5, DENSE)}
LAYERS = {"lenet300": ["fc1", "fc2"], "lenet5": ["conv2", "fc1"]}
"""The last layer stays dense, and the first convolution: at 98 % its 25 weights a filter would be none."""


def main() -> None:
    parser = Parser(__doc__, sparsities=[90], methods=["dpp", "magnitude"], epochs=2)
    parser.add_data("MNIST's idx files")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--sparsities", type=float, nargs="+", default=[90, 95, 98])
    parser.add_argument("--methods", nargs="+", default=["dpp", "magnitude", "random"])
    parser.add_cache()
    parser.add_seeds(0, 1, 2)
    parser.add_split()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--drawing", type=float, default=0.6, help="share of the epochs in which masks are drawn")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--mult", type=float, default=10.0, help="step of the logits in steps of the weights")
    parser.add_argument("--prior", type=float, default=1.0)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument(
        "--channels-last", action="store_true", help="train in this layout (LeNet-5 is faster on AVX-512)"
    )
    parser.add_argument("--resample-every", type=int, default=1, help="steps that share one drawn mask")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = mnist(args)
    log = results() / f"dpp_mnist_{args.split}.jsonl"
    for net in args.nets:
        make, config = NETS[net]
        dense_of_seed = laid_out(trained(make, net, data, cache_of(args), config), args.channels_last)
        rows = []
        for sparsity in args.sparsities:
            own = DynamicProbabilisticPruning(
                pattern=f"weight {100 - sparsity:g}%", lr=args.lr, logit_lr_mult=args.mult, prior=args.prior,
                noise_scale=(args.noise, 0.1 * args.noise), resample_every=args.resample_every,
            )  # fmt: skip
            methods = {k: m for k, m in alike(own, args.epochs, args.drawing).items() if k in args.methods}
            rows += run_masks(net, dense_of_seed, LAYERS[net], data, methods, args.seeds, log, args.split)
        print(f"\n{net}, {args.split} error in %\n\n{table_masks(rows, args.methods)}\n", flush=True)


if __name__ == "__main__":
    main()
