"""Cost of a stage's step of recursive Bayesian pruning against a plain training step of the same part (bar B5).

    python benchmarks/rbp_cost.py

ResNet-56 on 32 x 32 images, batch 128, random data, the noise of one group in the middle; interleaved, thread CPU time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import prunus
from nets import resnet56
from prunus.fit import only_trainable
from prunus.gate import attach, recompute_products
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.recursive import trainable_from
from record import interleaved, ratio, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = resnet56().to(memory_format=torch.channels_last).train()
    x = torch.randn(args.batch, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (args.batch,))
    graph = prunus.trace(model, x[:2])
    group = graph.groups()[len(graph.groups()) // 2]
    weights = trainable_from(model, graph, [group], "later")
    method = RecursiveBayesianPruning()
    plain = torch.optim.Adam(weights, lr=1e-8)

    def timed(step: Callable[[], None]) -> Callable[[], float]:
        def run() -> float:
            start = time.process_time()
            step()
            return time.process_time() - start

        return run

    with only_trainable(model, weights), attach(model, [group], method.posterior) as gates:
        both = torch.optim.Adam([*gates.parameters(), *weights], lr=1e-8)

        def train_step() -> None:
            gates.off()
            loss = F.cross_entropy(model(x), y)
            plain.zero_grad()
            loss.backward()
            plain.step()

        def stage_step() -> None:
            gates.sample()
            with recompute_products():
                loss = F.cross_entropy(model(x), y) + gates.penalty(50_000)
            both.zero_grad()
            loss.backward()
            both.step()

        times = interleaved({"train": timed(train_step), "stage": timed(stage_step)}, args.repeats)
    middle, low, high = ratio(times, "stage", "train")
    print(f"group {group.name}, {group.units} units, {sum(p.numel() for p in weights):,} weights train along")
    print(f"stage step / training step: {middle:.3f}  (quartiles {low:.3f} .. {high:.3f})")
    print(
        "written to", write("rbp_cost_cpu", {"seconds": times, "time_ratio": (middle, low, high), "batch": args.batch})
    )


if __name__ == "__main__":
    main()
