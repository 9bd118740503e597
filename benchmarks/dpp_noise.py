"""How much noise, and for how long, dynamic probabilistic pruning of a trained ResNet-20 bears, in short runs.

    python benchmarks/dpp_noise.py --data DIR --weights FILE

The validation split decides; the shared checkpoint has seen it in training, so only differences mean something.
"""

from __future__ import annotations

from dataclasses import replace

import torch

import prunus
from compare_masks import alike
from compare_staged import Slices
from dpp_cifar import layers_of
from given import cifar10, resnet
from options import Parser
from prunus.data.batches import Splits
from prunus.data.datasets import Batches
from prunus.data.evaluation import evaluate
from prunus.methods.dpp import DynamicProbabilisticPruning
from record import Log, results


def main() -> None:
    parser = Parser(__doc__, noise=[0.3], steps=1)
    parser.add_data("CIFAR-10's binary version")
    parser.add_weights("akamaster's checkpoint")
    parser.add_argument("--pattern", default="kernel 25%")
    parser.add_argument("--noise", type=float, nargs="+", default=[1.0, 0.3, 0.1, 0.03])
    parser.add_argument("--steps", type=int, default=70, help="batches of 128 in an epoch, of which there are six")
    parser.add_argument("--drawing", type=int, nargs="+", default=[4], help="epochs that draw; the others tune")
    parser.add_argument("--mult", type=float, default=10.0, help="step of the logits in steps of the weights")
    parser.add_seeds(0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = cifar10(args)
    dense = resnet(20, args).to(memory_format=torch.channels_last)
    own = DynamicProbabilisticPruning(pattern=args.pattern, lr=5e-4, logit_lr_mult=args.mult)
    methods = {"magnitude": replace(alike(own, 6, 0.5)["magnitude"], logit_lr_mult=10.0)}
    for drawing in args.drawing:
        drawn = alike(own, 6, drawing / 6)["dpp"]
        more = "" if drawing == 4 else f", drawn for {drawing}"
        more += "" if args.mult == 10 else f", logits {args.mult:g} times as fast"
        methods |= {f"noise {n:g}{more}": replace(drawn, noise_scale=(n, 0.1 * n)) for n in args.noise}
    runs = Log(results() / "dpp_noise_validation.jsonl")
    for seed in args.seeds:
        for label, method in methods.items():
            key = {"label": label, "seed": seed, "settings": repr(method), "steps": args.steps}
            if runs.has(key):
                continue
            batches = Slices(Batches(data.train, 128, shuffle=True, seed=seed, augment=data.augment), args.steps)
            layers = dict.fromkeys(layers_of(dense, args.pattern), args.pattern)
            result = prunus.prune(
                dense, data.example_inputs, method=method, target=layers,
                data=Splits(batches, Batches(data.validation, 500)), loss_fn=data.loss_fn, seed=seed, progress=False,
            )  # fmt: skip
            found = result.masked
            judged = evaluate(result.model, data.validation)
            training = [round(e.loss, 3) for e in found.history]
            runs.add({**key, "error": 100 - judged.accuracy, "loss": judged.loss, "training": training,
                      "sampled_loss": found.sampled_loss}, "settings")  # fmt: skip


if __name__ == "__main__":
    main()
