"""Kernels, filters and 2:4 in ResNet-20 on CIFAR-10 (bar C3), against magnitude with the same pattern and training.

    python benchmarks/dpp_cifar.py --data DIR --weights FILE [--split test] [--patterns "kernel 50%"] [--bits 8]

DIR holds the binary version of CIFAR-10, FILE akamaster's checkpoint. Patterns lie on every 3 x 3 convolution but the
first; filters on the inner convolutions of the blocks alone, whose filters nobody else writes.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from compare_masks import alike, run_masks, table_masks
from given import cifar10, resnet
from options import Parser
from prunus.methods.dpp import DynamicProbabilisticPruning
from record import results

PATTERNS = ["kernel 50%", "kernel 25%", "filter 50%", "2:4"]


def layers_of(model: nn.Module, pattern: str) -> list[str]:
    """The convolutions that get a pattern."""
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)][1:]
    return [n for n in names if n.endswith("conv1")] if pattern.startswith("filter") else names


def main() -> None:
    parser = Parser(__doc__, patterns=["kernel 50%", "filter 50%"], methods=["dpp"], epochs=2)
    parser.add_data("CIFAR-10's binary version")
    parser.add_weights("akamaster's checkpoint")
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--methods", nargs="+", default=["dpp", "magnitude"])
    parser.add_seeds(0, 1, 2)
    parser.add_split()
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--drawing", type=float, default=0.6)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--mult", type=float, default=10.0)
    parser.add_argument("--prior", type=float, default=1.0)
    parser.add_argument("--noise", type=float, default=0.3, help="scale of the noise at the start; a tenth at the end")
    parser.add_argument("--bits", type=int, choices=(8, 4, 2, 1), default=None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    data = cifar10(args)
    dense = resnet(20, args).to(args.device, memory_format=torch.channels_last)
    rows = []
    for pattern in args.patterns:
        own = DynamicProbabilisticPruning(
            pattern=pattern, lr=args.lr, logit_lr_mult=args.mult, prior=args.prior, bits=args.bits,
            noise_scale=(args.noise, 0.1 * args.noise),
        )  # fmt: skip
        methods = {k: m for k, m in alike(own, args.epochs, args.drawing).items() if k in args.methods}
        rows += run_masks(
            "resnet20", lambda _: copy.deepcopy(dense), layers_of(dense, pattern), data, methods, args.seeds,
            results() / f"dpp_cifar_{args.split}.jsonl", args.split,
        )  # fmt: skip
    print(f"\n{args.split} error in %\n\n{table_masks(rows, args.methods)}\n", flush=True)


if __name__ == "__main__":
    main()
