"""Eight bits behind pruning, on real networks: what it costs, and what each of the two is worth in time and bytes.

    PRUNUS_SHARED=DIR python benchmarks/int8.py --cifar DIR [--nets resnet20 resnet56] [--budget "macs<=50%"]

ResNets with public weights, dense and at a budget (whatever may go, repaired, no training), each as ONNX in fp32 and in
int8 of ONNX Runtime's static quantisation, calibrated on the first training images that pruning saw too (`export` takes
64). Accuracy of the files on the test split, and CPU time of one image on one thread, all four in turns.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunus
from options import Parser, needs, smoking
from prunus.data.datasets import ArrayDataset, Batches
from record import Log, interleaved, ratio, results
from round_to import opened, sampled
from subjects import on_cifar10

LEARNED, REPEATS = 1024, 61


def accuracy(session: Any, data: ArrayDataset) -> float:
    """Per cent of the images that a file puts first rightly."""
    name, right = session.get_inputs()[0].name, 0
    for images, labels in Batches(data, 250):
        (logits,) = session.run(None, {name: images.numpy()})
        right += int((torch.from_numpy(logits).argmax(1) == labels).sum())
    return 100 * right / len(data)


def run(name: str, args: argparse.Namespace, log: Log) -> None:
    """The row of one network, if it is not there yet."""
    key = {"net": name, "budget": args.budget, "method": args.method}
    if log.has(key):
        return
    dense, data = on_cifar10(name, args.cifar)
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:LEARNED]
    batches = Batches(data.train.subset(chosen), 64, shuffle=True, seed=0)
    given = {"method": args.method, "target": args.budget, "data": batches, "loss_fn": data.loss_fn}
    result = prunus.prune(dense, data.example_inputs, progress=False, **given)
    found: dict[str, Any] = {"macs": result.plan.after.macs / result.plan.before.macs}
    with tempfile.TemporaryDirectory() as folder:
        jobs = {}
        for which, model in (("dense", dense), ("pruned", result.model)):
            for form in ("onnx", "int8"):
                path = Path(folder) / f"{which}-{form}.onnx"
                written(model, data.example_inputs, path, form, batches)
                session = opened(path)
                found[f"{which} {form}"] = {"accuracy": accuracy(session, data.test), "bytes": path.stat().st_size}
                jobs[f"{which} {form}"] = sampled(session, data.example_inputs[:1])
        times = interleaved(jobs, 3 if smoking() else REPEATS)
    for which in jobs:
        found[which]["time"] = ratio(times, which, "dense onnx")
    log.add({**key, **found})


def written(model: nn.Module, inputs: Any, path: Path, form: str, batches: Any) -> None:
    """One file."""
    prunus.export(model, inputs[:2], path, form=form, calibration=batches if form == "int8" else None)


def table(rows: list[dict[str, Any]]) -> str:
    """A line a file."""
    lines = ["| network | file | test accuracy | time of dense fp32 (quartiles) | bytes |", "|---|---|---|---|---|"]
    for row in rows:
        for which in ("dense onnx", "dense int8", "pruned onnx", "pruned int8"):
            middle, low, high = row[which]["time"]
            lines.append(
                f"| {row['net']} | {which} | {row[which]['accuracy']:.2f} % | {middle:.2f} ({low:.2f} .. {high:.2f}) "
                f"| {row[which]['bytes']:,} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = Parser(__doc__, nets=["resnet20"], method="l1")
    parser.add_argument("--nets", nargs="+", choices=("resnet20", "resnet32", "resnet56"), default=["resnet20"])
    parser.add_argument("--budget", default="macs<=50%")
    parser.add_argument("--method", default="fisher")
    parser.add_argument("--cifar", metavar="DIR", help="CIFAR-10's binary version")
    args = parser.parse_args()
    needs("onnx", "onnxruntime", "onnxscript")
    torch.set_num_threads(1)
    log = Log(results() / "int8.jsonl")
    for name in args.nets:
        run(name, args, log)
    print(table([r for r in log.rows if r["net"] in args.nets and r["budget"] == args.budget]))


if __name__ == "__main__":
    main()
