"""Cost of recursive Bayesian pruning against plain training (bar B5): one stage's step, and a whole recursion.

    python benchmarks/rbp_cost.py [--only step] [--batches 40]

The step: ResNet-56 on 32 x 32 images, batch 128, random data, the noise of one group in the middle; interleaved, thread
CPU time. The recursion: ResNet-20, all nine inner groups to half of their units, an epoch of noise and one of tuning a
stage, everything included (tracing, folding, surgery, proof); against plain training of the same networks, each as
small as it was in its stage, for the same epochs of the same batches.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
import torch.nn.functional as F

import prunus
from nets import resnet8, resnet20, resnet56
from options import Parser
from prunus.gates.gate import attach, recompute_products
from prunus.learning.problem import Problem
from prunus.learning.stages import prune_in_stages, trainable_from
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.plan.plan import Plan
from prunus.plan.request import requested
from prunus.recovery.tune import tune_
from prunus.runtime.training import only_trainable
from record import interleaved, ratio, timed, write


def main() -> None:
    parser = Parser(__doc__, batch=4, batches=1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_repeats(7)
    parser.add_argument("--batches", type=int, default=40, help="in an epoch of the recursion")
    parser.add_argument("--only", choices=("step", "recursion"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.only != "recursion":
        step(args)
    if args.only != "step":
        recursion(args)


def recursion(args: argparse.Namespace) -> None:
    """A whole recursion against plain training of the same sequence of networks."""
    data = [
        (torch.randn(args.batch, 3, 32, 32), torch.randint(0, 10, (args.batch,))) for _ in range(args.batches)
    ]  # fmt: skip
    dense = (resnet8 if args.smoke else resnet20)()
    graph = prunus.trace(dense, data[0][0][:2])
    groups = [g for g in graph.groups() if g.name.endswith("conv1") and g.name != "conv1"]
    counts = {g.name: g.units // 2 for g in groups}
    method = RecursiveBayesianPruning(epochs=1, tune_epochs=1)
    start = time.process_time()
    request = requested(counts, None, method=method.name, takes=method.targets, optional=False)
    problem = Problem(dense, data[0][0][:2], graph, request, data, F.cross_entropy)
    done = prune_in_stages(problem, groups, method, problem.learning(method.name), counts)
    whole = time.process_time() - start
    plain, current, kept = 0.0, copy.deepcopy(dense), {}
    for group in groups:
        own = prunus.trace(current, data[0][0][:2])
        weights = trainable_from(current, own, [own.group(group.name)], "later")
        start = time.process_time()
        tune_(current, weights, data, F.cross_entropy, epochs=method.epochs, lr=1e-8)
        plain += time.process_time() - start
        kept[group.name] = done.kept[group.name]
        current = prunus.apply_(copy.deepcopy(dense), Plan.from_kept(graph, kept), data[0][0][:2])
        start = time.process_time()
        tune_(current, list(current.parameters()), data, F.cross_entropy, epochs=method.tune_epochs, lr=1e-8)
        plain += time.process_time() - start
    steps = len(groups) * (method.epochs + method.tune_epochs) * args.batches
    print(f"whole recursion / plain training of the same networks: {whole / plain:.3f} ({steps} steps of {args.batch})")
    print("written to", write("rbp_recursion_cost_cpu", {"recursion": whole, "plain": plain, "steps": steps}))


def step(args: argparse.Namespace) -> None:
    """A stage's step against a training step of the same part."""
    model = (resnet8 if args.smoke else resnet56)().to(memory_format=torch.channels_last).train()
    x = torch.randn(args.batch, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (args.batch,))
    graph = prunus.trace(model, x[:2])
    group = graph.groups()[len(graph.groups()) // 2]
    weights = trainable_from(model, graph, [group], "later")
    method = RecursiveBayesianPruning()
    plain = torch.optim.Adam(weights, lr=1e-8)

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
