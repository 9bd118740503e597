"""How a halved ResNet-20 is best recovered in five epochs: plans and recipes compared on the validation split.

    python benchmarks/recovery_defaults.py --data DIR --weights FILE --plans L1 dirichlet:1 --recipes "" "lr=0.05"

DIR holds the binary version of CIFAR-10, FILE the ResNet-20 checkpoint. A plan is `L1` (uniform over the layers) or
`dirichlet:EXPONENT` (of the units' costs, `uniform` for none); a recipe is a list of FinetuneConfig fields. Besides the
accuracy, the cross-entropy and the divergence from the dense network are printed: they scatter less on 5,000 images.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import replace

import torch
from torch.nn import functional as F

from compare_methods import Entry, RememberingTeacher, Setting, planned
from given import brief, cifar10, resnet
from options import Parser
from prunus.data.datasets import Batches
from prunus.methods.criteria import L1
from prunus.methods.dirichlet import DirichletPruning
from prunus.plan.allocation import Allocation
from prunus.proof.apply import apply_and_verify_
from prunus.recovery.batchnorm import reestimate_batch_norm
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.finetuning import finetune
from record import provenance, results


def entry_of(text: str) -> Entry:
    """The method and allocation that a plan's name means."""
    name, _, exponent = text.partition(":")
    if name == "L1":
        return Entry(text, L1(), Allocation(scope="uniform"))
    allocation = Allocation(scope="uniform") if exponent == "uniform" else Allocation(cost_exponent=float(exponent))
    return Entry(text, brief(DirichletPruning()), allocation)


def config_of(text: str, epochs: int) -> FinetuneConfig:
    """The recovery that `lr=0.05,distillation=0.9` means."""
    changes = {k: float(v) for k, v in (part.split("=") for part in text.split(",") if part)}
    return replace(FinetuneConfig(epochs=epochs, lr=0.02, channels_last=True), **changes)  # type: ignore[arg-type]


def main() -> None:
    parser = Parser(__doc__, plans=["L1", "dirichlet:1"], epochs=1)
    parser.add_data("CIFAR-10's binary version")
    parser.add_weights("the ResNet-20 checkpoint")
    parser.add_argument("--plans", nargs="+", default=["L1"])
    parser.add_argument("--recipes", nargs="+", default=[""])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = cifar10(args)
    dense = resnet(20, args)
    teacher = RememberingTeacher(copy.deepcopy(dense))
    setting = Setting(keep=lambda n: n.endswith(".conv1"), budget="macs<=50%", learning_examples=20_000)
    for plan_name in args.plans:
        plan, _ = planned(copy.deepcopy(dense), data, entry_of(plan_name), setting, args.seed)
        for recipe in args.recipes:
            smaller, _ = apply_and_verify_(copy.deepcopy(dense), plan, data.example_inputs)
            reestimate_batch_norm(smaller, Batches(data.train, 250, shuffle=True, seed=args.seed), num_batches=40)
            config = replace(config_of(recipe, args.epochs), seed=args.seed)
            start = time.perf_counter()
            finetune(smaller, data, config, teacher=teacher, progress=False)
            seconds = time.perf_counter() - start
            smaller.eval()
            with torch.no_grad():
                x, y = (torch.cat(parts) for parts in zip(*Batches(data.validation, 500), strict=True))
                ours = torch.cat([smaller(part) for part in x.split(500)])
                dense_says = torch.cat([dense(part) for part in x.split(500)])
            row = {
                "plan": plan_name,
                "recipe": recipe,
                "epochs": args.epochs,
                "seed": args.seed,
                "accuracy": 100 * float((ours.argmax(1) == y).float().mean()),
                "cross_entropy": float(F.cross_entropy(ours, y)),
                "divergence": float(
                    F.kl_div(ours.log_softmax(1), dense_says.log_softmax(1), reduction="batchmean", log_target=True)
                ),
                "seconds": round(seconds, 1),
                "kept": {g.name: len(g.kept) for g in plan.groups},
            }
            print({k: v for k, v in row.items() if k != "kept"}, list(row["kept"].values()), flush=True)  # type: ignore[attr-defined]
            with (results() / "recovery_defaults.jsonl").open("a") as file:
                file.write(json.dumps({**row, "provenance": provenance()}) + "\n")


if __name__ == "__main__":
    main()
