"""Widths alone, blocks alone, and both at one budget: what is lost at once, after repair (bars J2, J3).

    PRUNUS_SHARED=DIR python benchmarks/blocks.py --cifar DIR [--nets resnet20 resnet56 stories] [--budgets 70 50]
    ... --resource latency --budgets 60 [--epochs 1]

All three from the same 1,024 training examples, without any training; judged on the test split. Blocks alone go in the
measured order until the budget is met, which whole blocks overshoot. Latency is that of ONNX Runtime, one thread, one
example; what was made is timed once more in turns with the dense network. `--epochs` trains on afterwards, with labels.
PRUNUS_SHARED is that of `real_models.py`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from allocation_choice import network
from options import Parser, smoking
from prunus.data.datasets import Batches, DataSource
from prunus.data.evaluation import evaluate
from prunus.recovery.config import FinetuneConfig
from record import Log, interleaved, ratio, results
from round_to import session

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


def timed(dense: nn.Module, smaller: nn.Module, inputs: Any) -> float:
    """Time of the smaller network in ONNX Runtime as a share of the dense one's, in turns."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        jobs = {"smaller": session(smaller, inputs[:1], Path(one)), "dense": session(dense, inputs[:1], Path(other))}
        return ratio(interleaved(jobs, 3 if smoking() else 41), "smaller", "dense")[0]


def trained(model: nn.Module, dense: nn.Module, data: DataSource, epochs: int) -> dict[str, Any]:
    """After a recovery with the defaults, on all training examples; the network is changed."""
    prunus.finetune(model, data, FinetuneConfig(epochs=epochs), teacher=dense, progress=False)
    found = evaluate(model, data.test, loss_fn=data.loss_fn)
    return {"recovered_loss": found.loss, "recovered_accuracy": found.accuracy}


def run(name: str, budget: int, args: argparse.Namespace, log: Log) -> None:
    """The rows of one network and budget that are not there yet."""
    model, data = network(name, args)
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:LEARNED]
    batches = Batches(data.train.subset(chosen), 64, shuffle=True, seed=0)
    target = f"{args.resource}<={budget}%"
    given: dict[str, Any] = {"method": args.method, "data": batches, "loss_fn": data.loss_fn, "progress": False}
    order: tuple[str, ...] | None = None
    # Rows of before have neither of the two.
    how = {"resource": None if args.resource == "macs" else args.resource, "epochs": args.epochs or None}
    for way in WAYS:
        key = {"net": name, "budget": budget, "way": way, "method": args.method, **how}
        if log.has(key):
            continue
        start = time.process_time()
        if way == "widths":
            result = prunus.prune(model, data.example_inputs, target=target, **given)
        else:
            if order is None or way == "both":
                result = prunus.prune(model, data.example_inputs, target=target, allow=("blocks",), **given)
                order = result.scores.depths[-1].blocks
            if way == "blocks":
                counts = dict.fromkeys(order, 0)
                result = prunus.prune(model, data.example_inputs, target=counts, allow=("blocks",), **given)
        found = {**key, **row(data, model, result, time.process_time() - start)}
        if args.resource == "latency":
            found["latency"] = timed(model, result.model, data.example_inputs)
        if args.epochs:
            print(f"{name}, {way}: {found['accuracy']:.2f} % before {args.epochs} epochs", flush=True)
            found |= trained(result.model, model, data, args.epochs)
        log.add(found, "kept")


def share(value: float | None, whole: float = 1.0) -> str:
    """As per cent; nothing where it was not measured."""
    return "" if value is None else f"{value / whole:.2%}"


def table(rows: list[dict[str, Any]]) -> str:
    """A line a network, budget and way."""
    lines = [
        "| network | budget | what goes | MACs | latency | parameters | blocks | test loss (dense) | test accuracy "
        "| after epochs | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['net']} | {r.get('resource') or 'macs'} {r['budget']} % | {r['way']} | {r['macs']:.1%} "
        f"| {share(r.get('latency'))} | {r['params']:.1%} | {len(r['blocks'])} "
        f"| {r['loss']:.3f} ({r['dense_loss']:.3f}) | {r['accuracy']:.2f} % "
        f"| {share(r.get('recovered_accuracy'), 100)} | {r['seconds']:.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = Parser(__doc__, nets=["resnet20", "stories"], budgets=[70])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[70, 50], help="per cent of the MACs, or of the latency"
    )
    parser.add_argument("--resource", choices=("macs", "latency"), default="macs")
    parser.add_argument("--epochs", type=int, default=0, help="of training afterwards")
    parser.add_argument("--method", default="fisher")
    parser.add_argument("--cifar", metavar="DIR", help="CIFAR-10's binary version, for the ResNets")
    args = parser.parse_args()
    torch.set_num_threads(1)
    log = Log(results() / "blocks.jsonl")
    for name in args.nets:
        for budget in args.budgets:
            run(name, budget, args, log)
    print(table([r for r in log.rows if r["net"] in args.nets]))


if __name__ == "__main__":
    main()
