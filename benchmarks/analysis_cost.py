"""Cost of the analysis: tracing + groups + plan + surgery of ResNet-50 against the bare torch.export call (bar A7).

    python benchmarks/analysis_cost.py

The proof is timed apart. Torch-Pruning (if installed) builds its graph and prunes the same ratio in the same run.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch

import prunus
from imagenet_nets import resnet50
from nets import resnet8
from options import Parser
from prunus.proof.apply import apply_and_verify_
from prunus.surgery.cut import cut_
from record import interleaved, ratio, timed, write


def half(graph: Any) -> dict[str, list[int]]:
    return {g.name: list(range(0, g.units, 2)) for g in graph.groups()}


def main() -> None:
    parser = Parser(__doc__, side=64)
    parser.add_repeats(9, small=1)
    parser.add_argument("--side", type=int, default=224, help="of the images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = (resnet8 if args.smoke else resnet50)().eval()
    x = torch.randn(1, 3, args.side, args.side)

    def export() -> None:
        with torch.no_grad():
            torch.export.export(model, (x,), strict=False)

    def ours() -> float:
        start = time.perf_counter()
        graph = prunus.trace(model, x)
        plan = prunus.Plan.from_kept(graph, half(graph))
        undo = cut_(model, plan)
        seconds = time.perf_counter() - start
        undo()
        return seconds

    def proof() -> float:
        smaller = copy.deepcopy(model)
        graph = prunus.trace(model, x)
        plan = prunus.Plan.from_kept(graph, half(graph))
        start = time.perf_counter()
        apply_and_verify_(smaller, plan, x)
        return time.perf_counter() - start

    jobs: dict[str, Callable[[], float]] = {
        "export": timed(export, clock=time.perf_counter),
        "prunus": ours,
        "surgery with proof": proof,
    }
    try:
        import torch_pruning

        def rival() -> float:
            copied = copy.deepcopy(model)
            start = time.perf_counter()
            pruner = torch_pruning.pruner.BasePruner(
                copied,
                x,
                importance=torch_pruning.importance.RandomImportance(),
                pruning_ratio=0.5,
                ignored_layers=[*copied.children()][-1:],
            )
            pruner.step()
            return time.perf_counter() - start

        jobs["torch-pruning"] = rival
    except ImportError:
        print("torch-pruning is not installed: not compared")
    times = interleaved(jobs, args.repeats, warmup=int(not args.smoke))
    summary = {name: ratio(times, name, "export") for name in jobs if name != "export"}
    for name, (middle, low, high) in summary.items():
        print(f"{name:<20} / bare export: {middle:.2f}  (quartiles {low:.2f} .. {high:.2f})")
    print("written to", write("analysis_cost", {"seconds": times, "ratios": summary}))


if __name__ == "__main__":
    main()
