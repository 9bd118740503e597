"""Widths alone, blocks alone, and both at one budget: what is lost at once, after repair (bars J2, J3).

    PRUNUS_SHARED=DIR python benchmarks/blocks.py --cifar DIR [--nets resnet20 resnet56 stories] [--budgets 70 50]

All three from the same 1,024 training examples, without any training; judged on the test split. Blocks alone go in the
measured order until the budget is met, which whole blocks overshoot. PRUNUS_SHARED is that of `real_models.py`.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn

import prunus
from allocation_choice import network
from options import Parser
from prunus.data.datasets import Batches, DataSource
from prunus.data.evaluation import evaluate
from record import Log, results

NETS = ("resnet20", "resnet32", "resnet56", "stories")
WAYS = ("widths", "both", "blocks")
LEARNED = 1024


def row(data: DataSource, dense: nn.Module, result: prunus.Result, seconds: float) -> dict[str, Any]:
    """What became of the network."""
    found = evaluate(result.model, data.test, loss_fn=data.loss_fn)
    plan = result.plan
    return {
        "macs": plan.after.macs / plan.before.macs,
        "params": plan.after.params / plan.before.params,
        "blocks": list(plan.blocks),
        "loss": found.loss,
        "accuracy": found.accuracy,
        "dense_loss": evaluate(dense, data.test, loss_fn=data.loss_fn).loss,
        "rewritten": result.verification.rewritten,
        "proof": result.verification.max_error,
        "kept": {g.name: len(g.kept) for g in plan.groups},
        "seconds": round(seconds, 1),
    }


def run(name: str, budget: int, method: str, args: argparse.Namespace, log: Log) -> None:
    """The rows of one network and budget that are not there yet."""
    model, data = network(name, args)
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:LEARNED]
    batches = Batches(data.train.subset(chosen), 64, shuffle=True, seed=0)
    given: dict[str, Any] = {"method": method, "data": batches, "loss_fn": data.loss_fn, "progress": False}
    order: tuple[str, ...] | None = None
    for way in WAYS:
        key = {"net": name, "budget": budget, "way": way, "method": method}
        if log.has(key):
            continue
        start = time.process_time()
        if way == "widths":
            result = prunus.prune(model, data.example_inputs, target=f"macs<={budget}%", **given)
        else:
            if order is None or way == "both":
                result = prunus.prune(model, data.example_inputs, target=f"macs<={budget}%", allow=("blocks",), **given)
                order = result.scores.depths[-1].blocks
            if way == "blocks":
                counts = dict.fromkeys(order, 0)
                result = prunus.prune(model, data.example_inputs, target=counts, allow=("blocks",), **given)
        log.add({**key, **row(data, model, result, time.process_time() - start)}, "kept")


def table(rows: list[dict[str, Any]]) -> str:
    """A line a network, budget and way."""
    lines = [
        "| network | budget | what goes | MACs | parameters | blocks | test loss (dense) | test accuracy | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['net']} | {r['budget']} % | {r['way']} | {r['macs']:.1%} | {r['params']:.1%} | {len(r['blocks'])} "
        f"| {r['loss']:.3f} ({r['dense_loss']:.3f}) | {r['accuracy']:.2f} % | {r['seconds']:.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = Parser(__doc__, nets=["resnet20", "stories"], budgets=[70])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--budgets", type=int, nargs="+", default=[70, 50], help="per cent of the MACs")
    parser.add_argument("--method", default="fisher")
    parser.add_argument("--cifar", metavar="DIR", help="CIFAR-10's binary version, for the ResNets")
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = Log(results() / "blocks.jsonl")
    for name in args.nets:
        for budget in args.budgets:
            run(name, budget, args.method, args, log)
    print(table([r for r in log.rows if r["net"] in args.nets]))


if __name__ == "__main__":
    main()
