"""How `auto` shares a budget out, against the rule before repair, on eight networks; are budgets met? (bar I11).

    PRUNUS_SHARED=DIR python benchmarks/allocation_choice.py --cifar DIR [--nets lenet5 resnet20 ...]

Before: of two plans (global, measured) the one whose masked network has less loss, without repair. Now: of up to nine
plans, each repaired on a few examples, the nearest to the dense network. The plans of both are repaired in full from
the same 1,024 training examples, and their loss on the validation split is compared.

The LeNets and the small vision transformer are trained here on 28 x 28 digits, for a few epochs; the other networks
have their public weights. The checkpoints of the ResNets know the held-out images by heart: theirs are shifted and
flipped. A budget is met if what is kept is at most 0.5 points below it, or no group can gain another whole step.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn

import prunus
import real_models
from options import Parser, needs
from prunus.data.datasets import Batches, DataSource
from prunus.data.evaluation import evaluate
from prunus.graph.groups import ChannelGroup
from prunus.plan.plan import Plan
from prunus.plan.rounding import DEFAULT, step_of
from record import Log, results
from subjects import on_cifar10, on_digits

NETS = ("lenet300", "lenet5", "vit", "resnet20", "resnet32", "resnet56", "mobilenet", "stories")
LEARNED = 1024
NEAR = 0.005


def network(name: str, args: argparse.Namespace) -> tuple[nn.Module, DataSource]:
    """A trained network and its data."""
    match name:
        case "lenet300" | "lenet5" | "vit":
            return on_digits(name)
        case "mobilenet":
            return real_models.mobilenet(), real_models.pictures()
        case "stories":
            needs("transformers")
            return real_models.llama(), real_models.stories()
    return on_cifar10(name, args.cifar)


def met(
    model: nn.Module, data: DataSource, plan: Plan, groups: list[ChannelGroup], resource: str, share: float
) -> bool:
    """Whether a budget is met as nearly as whole steps allow."""
    kept = getattr(plan.after, resource) / getattr(plan.before, resource)
    if share - NEAR <= kept <= share:
        return True
    graph = prunus.trace(model, data.example_inputs)
    for group in groups:
        units = list(plan.kept[group.name])
        more = sorted(set(range(group.units)) - set(units))[: step_of(group, DEFAULT)]
        if more:
            larger = Plan.from_kept(graph, {**plan.kept, group.name: sorted(units + more)})
            if getattr(larger.after, resource) <= share * getattr(larger.before, resource):
                return False
    return kept <= share


def one(name: str, method: str, resource: str, args: argparse.Namespace) -> dict[str, Any]:
    """Both rules on one network."""
    model, data = network(name, args)
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:LEARNED]
    batches = Batches(data.train.subset(chosen), 64, shuffle=True, seed=0)
    given = {"method": method, "target": f"{resource}<=50%", "data": batches, "loss_fn": data.loss_fn}
    found: dict[str, Any] = {"dense": evaluate(model, data.validation, loss_fn=data.loss_fn).loss}
    for rule in ("before", "now"):
        start = time.process_time()
        plan = prunus.prune(model, data.example_inputs, **given, repair=rule == "now", progress=False).plan
        found[f"{rule}_seconds"] = round(time.process_time() - start, 1)
        repaired = prunus.repair(model, plan, batches, progress=False)
        smaller = prunus.apply_(repaired.model, plan, data.example_inputs)
        found[rule] = evaluate(smaller, data.validation, loss_fn=data.loss_fn).loss
        found[f"{rule}_share"] = getattr(plan.after, resource) / getattr(plan.before, resource)
        found[f"{rule}_kept"] = [len(units) for units in plan.kept.values()]
        groups = [g for g in prunus.trace(model, data.example_inputs).groups() if g.name in plan.kept]
        found[f"{rule}_met"] = met(model, data, plan, groups, resource, 0.5)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """A line a network, method and resource."""
    lines = [
        "| network | method | budget | kept: before, now | met "
        "| validation loss: dense, before, now | CPU s: before, now |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        shares = ", ".join(f"{r[f'{rule}_share']:.1%}" for rule in ("before", "now"))
        losses = ", ".join(f"{r[key]:.4f}" for key in ("dense", "before", "now"))
        lines.append(
            f"| {r['net']} | {r['method']} | {r['resource']}<=50% | {shares} | {'yes' if r['now_met'] else 'no'} "
            f"| {losses} | {r['before_seconds']:.0f}, {r['now_seconds']:.0f} |"
        )
    worse = [r["net"] for r in rows if r["now"] > r["before"] * 1.001]
    return "\n".join([*lines, f"now worse than before on {len(worse)} of {len(rows)}: {', '.join(worse) or 'none'}"])


def main() -> None:
    parser = Parser(__doc__, nets=["lenet300", "resnet20"])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--methods", nargs="+", default=["l1"])
    parser.add_argument("--resources", nargs="+", default=["macs"], choices=("macs", "params"))
    parser.add_argument("--cifar", metavar="DIR", help="CIFAR-10's binary version, for the ResNets")
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = Log(results() / "allocation_choice.jsonl")
    for name in args.nets:
        for method in args.methods:
            for resource in args.resources:
                key = {"net": name, "method": method, "resource": resource}
                if not log.has(key):
                    log.add({**key, **one(name, method, resource, args)}, "before_kept", "now_kept")
    print(table([r for r in log.rows if r["net"] in args.nets and r["method"] in args.methods]))


if __name__ == "__main__":
    main()
