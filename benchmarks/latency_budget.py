"""F5: is a network planned for 60 % of the latency as fast as asked, and as good as the best plan by MACs?

Each network is pruned to `latency<=PERCENT%` in ONNX Runtime on one thread, one example at once, and repaired. Then, by
the same scores and each way to share them out (cost exponents, uniform, measured losses), to the share of its MACs at
which the network is measured to be as fast, to two hundredths; of these the one that is nearest to the dense network
after repair is the best plan by MACs, chosen as `prune` chooses. Both are timed here once more, in turns with the dense
one, in CPU time; the loss is on held-out examples, of labels for ResNet-56 and the BERT, and of the dense network's
answers for MobileNetV2, for which there are no pictures with labels. The BERT is trained here, on SST-2's sentences.

    python benchmarks/latency_budget.py --cifar DIR --sst2 DIR --weights DIR [--nets ...] [--percent 60] [--smoke]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from nets import load_checkpoint, resnet8, resnet56
from options import Parser, cache_of, needs, smoking
from prunus.data.cifar10 import MEAN, STD
from prunus.data.datafiles import read_cifar10
from prunus.errors import BudgetError
from prunus.learning.problem import Problem
from prunus.measure.gauged import with_gauge
from prunus.methods.registry import resolve
from prunus.pipeline.meeting import cut, with_measured
from prunus.pipeline.planning import EXPONENTS, make_plan, prunable_groups
from prunus.pipeline.repairing import prepare, repaired
from prunus.pipeline.solve import Result, solve
from prunus.plan.allocation import Allocation, Scope
from prunus.plan.request import requested
from prunus.proof.apply import apply_and_verify_
from prunus.refit.config import RepairConfig
from real_nets import MobileNetV2
from record import interleaved, ratio, write
from round_to import session

NEAR, AS_FAST, TRIES = 0.05, 0.02, 4
"""What the bar allows; when two networks count as equally fast; plans that are made to come so near."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORDS, LENGTH = 4000, 48
Batch = tuple[Any, Tensor]


@dataclass(frozen=True)
class Job:
    """A trained network, what it is pruned with and what it is judged on."""

    model: nn.Module
    inputs: Tensor
    learned: list[Batch]
    held_out: list[Batch]


class TinyBert(nn.Module):
    """BERT of four layers and 128 dimensions on word numbers, 0 for padding; logits of two classes."""

    def __init__(self, layers: int = 4, width: int = 128) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        sizes = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 4 * width}
        config = BertConfig(
            vocab_size=WORDS, num_hidden_layers=layers, max_position_embeddings=LENGTH, num_labels=2, **sizes
        )
        self.bert = BertForSequenceClassification(config)

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.bert(input_ids=words, attention_mask=(words > 0).long()).logits
        return logits


def batches(inputs: Tensor, labels: Tensor, size: int) -> list[Batch]:
    """In their order."""
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def resnet(args: Any) -> Job:
    """akamaster's ResNet-56 (a smoke run's ResNet-8 of random weights) on CIFAR-10."""
    if args.smoke:
        images, labels = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
        return Job(resnet8().eval(), images[:1], batches(images, labels, 16), batches(images, labels, 16))
    model = load_checkpoint(resnet56(), next(args.weights.glob("cifar10-resnet/resnet56*")))
    (images, labels), (unseen, theirs) = pictures(args)
    return Job(model.eval(), images[:1], batches(images, labels, 64), batches(unseen, theirs, 250))


def pictures(args: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Of CIFAR-10, normalised, in an order by a seed: some to learn from, others to be judged on."""
    (images, labels), (unseen, theirs) = read_cifar10(args.cifar)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seeds[0]))[: args.examples]
    parts = ((images[order], labels[order]), (unseen[: args.held_out], theirs[: args.held_out]))
    return tuple(((x / 255 - mean) / std, y.long()) for x, y in parts)  # type: ignore[return-value]


def mobilenet(args: Any) -> Job:
    """torchvision's MobileNetV2 on CIFAR-10's pictures at 96 pixels; the dense network's answers are the labels."""
    model = MobileNetV2().eval()
    if args.smoke:
        learned = unseen = torch.randn(8, 3, 64, 64)
    else:
        path = next(args.weights.glob("mobilenet_v2/*.pth"))
        model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        (images, _), (others, _) = read_cifar10(args.cifar)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seeds[0]))
        learned, unseen = (larger(x) for x in (images[order[: args.examples]], others[: args.held_out]))
    parts = [batches(x, answers(model, x), 32) for x in (learned, unseen)]
    return Job(model, learned[:1], *parts)


def larger(images: Tensor) -> Tensor:
    """At 96 pixels, normalised as for ImageNet."""
    mean, std = (torch.tensor(v)[:, None, None] for v in IMAGENET)
    sized = F.interpolate(images.float() / 255, size=(96, 96), mode="bilinear", antialias=True)
    return (sized - mean) / std


def answers(model: nn.Module, inputs: Tensor) -> Tensor:
    """The classes that the dense network puts first."""
    with torch.no_grad():
        return torch.cat([model(x).argmax(1) for x in inputs.split(50)])


def bert(args: Any) -> Job:
    """The BERT, trained here on SST-2 if it was not before."""
    torch.manual_seed(args.seeds[0])
    if args.smoke:
        model = TinyBert(1, 32).eval()
        words, labels = torch.randint(1, WORDS, (16, LENGTH)), torch.randint(0, 2, (16,))
        return Job(model, words[:1], batches(words, labels, 8), batches(words, labels, 8))
    model = TinyBert()
    learned, unseen = sentences(args.sst2)
    path = cache_of(args) / f"sst2-bert-{args.seeds[0]}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        trained(model, *learned)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    few = tuple(part[: args.examples] for part in learned)
    return Job(model.eval(), unseen[0][:1], batches(*few, 64), batches(*unseen, 218))  # type: ignore[arg-type]


def sentences(folder: Path) -> list[tuple[Tensor, Tensor]]:
    """Numbers of the words, the frequent ones of the first part, and labels of both parts."""
    texts = [[line.split() for line in next(folder.glob(f"*{part}*")).read_text().splitlines()]
             for part in ("train", "dev")]  # fmt: skip
    counted: dict[str, int] = {}
    for line in texts[0]:
        for word in line[1:]:
            counted[word] = counted.get(word, 0) + 1
    known = {word: n for n, word in enumerate(sorted(counted, key=lambda w: (-counted[w], w))[: WORDS - 2], 2)}
    found = []
    for lines in texts:
        words = torch.zeros(len(lines), LENGTH, dtype=torch.int64)
        for row, line in enumerate(lines):
            numbers = [known.get(word, 1) for word in line[1 : LENGTH + 1]]
            words[row, : len(numbers)] = torch.tensor(numbers)
        found.append((words, torch.tensor([int(line[0]) for line in lines])))
    return found


def trained(model: nn.Module, words: Tensor, labels: Tensor, epochs: int = 6) -> None:
    """AdamW with a falling rate, batches of 32."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    steps = epochs * (len(words) // 32)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    model.train()
    for epoch in range(epochs):
        for rows in torch.randperm(len(words))[: 32 * (len(words) // 32)].split(32):
            loss = F.cross_entropy(model(words[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: training loss {float(loss):.3f}", flush=True)


NETS: dict[str, Callable[[Any], Job]] = {"ResNet-56": resnet, "MobileNetV2": mobilenet, "BERT": bert}


def judged(model: nn.Module, held_out: list[Batch]) -> tuple[float, float]:
    """Mean loss and top-1 in percent."""
    with torch.no_grad():
        outputs = [(model(x), y) for x, y in held_out]
    number = sum(len(y) for _, y in outputs)
    loss = sum(float(F.cross_entropy(o, y, reduction="sum")) for o, y in outputs) / number
    return loss, 100 * sum(int((o.argmax(1) == y).sum()) for o, y in outputs) / number


def main() -> int:
    parser = Parser(
        __doc__, cifar=None, sst2=None, weights=None, examples=32, method="l1", percent=95, nets=["ResNet-56"]
    )
    for name, what in (("cifar", "CIFAR-10's binary version"), ("sst2", "SST-2's sentences")):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"folder of {what}")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="folder of the trained networks")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--percent", type=int, default=60)
    parser.add_argument("--method", default="taylor")
    parser.add_argument("--examples", type=int, default=512, help="to score and repair with")
    parser.add_argument("--held-out", type=int, default=5000)
    parser.add_seeds(0)
    parser.add_repeats(61, small=3)
    parser.add_cache()
    args = parser.parse_args()
    needs("onnx", "onnxruntime", "onnxscript", *(["transformers"] if "BERT" in args.nets else []))
    torch.set_num_threads(1)
    rows = []
    for name in args.nets:
        rows.append({"net": name, **compared(NETS[name](args), args)})
        print(rows[-1], flush=True)
    met = sum(row["met"] for row in rows)
    print(f"{met} of {len(rows)} met: within {NEAR:.0%}, and no worse than the best plan by MACs that is as fast")
    settings = {"percent": args.percent, "method": args.method, "examples": args.examples, "repeats": args.repeats}
    print("written to", write(f"latency_budget_{args.percent}", {**settings, "seeds": args.seeds, "rows": rows}))
    return int(met < len(rows) and not args.smoke)


def compared(job: Job, args: Any) -> dict[str, Any]:
    """Latency, MACs and loss of the plan by latency, and of the best plan by MACs that is as fast."""
    loss, accuracy = judged(job.model, job.held_out)
    request = requested(f"latency<={args.percent}%", None, method=args.method, takes=("budget",), optional=False)
    graph = prunus.trace(job.model, job.inputs)
    problem = Problem(
        job.model, job.inputs, graph, request, job.learned, F.cross_entropy, seed=args.seeds[0],
        repair=RepairConfig(examples=args.examples),
    )  # fmt: skip
    problem = with_measured(replace(problem, prepared=prepare(problem)[0]))
    found = solve(resolve(args.method), problem)
    by_latency = row(job, found.model, found.plan, args.repeats)
    print(by_latency, flush=True)
    best = as_fast(problem, found, args)
    by_macs = None if best is None else row(job, *best, args.repeats)
    off = abs(100 * by_latency["latency"] / args.percent - 1)
    return {
        "dense": {"loss": round(loss, 4), "top-1": round(accuracy, 2)},
        "by latency": by_latency,
        "by MACs": by_macs,
        "met": off <= NEAR and (by_macs is None or by_latency["loss"] <= by_macs["loss"]),
    }


def as_fast(problem: Problem, found: Result, args: Any) -> tuple[nn.Module, prunus.Plan] | None:
    """The best of the plans by MACs, one for each way to share them out, whose networks are as fast; repaired.

    The share of the MACs is found by the layers' table, corrected by the network planned by latency, and then by what
    was measured of the network itself.
    """
    (latency,) = problem.measured
    wanted = found.plan.after["latency"]
    gauge = latency.gauge.corrected(latency.count(problem.graph, found.plan), wanted)
    graph = with_gauge(problem.graph, "latency", gauge)
    groups, plans = prunable_groups(graph, problem.model), []
    ways: list[tuple[Scope, float | None]] = [("global", e) for e in sorted({*EXPONENTS, found.scores.cost_exponent})]
    ways = [
        *ways[: 1 if smoking() else None],
        ("uniform", None),
        *([("measured", None)] if found.scores.measured else []),
    ]
    for way in ways:
        allocation, aim = Allocation(*way), wanted
        for _ in range(1 if smoking() else TRIES):
            plan = at_latency(graph, groups, found, allocation, aim)
            if plan is None:
                break
            took = latency.of(cut(problem, plan))
            print(f"{way}: {plan.after.macs / plan.before.macs:.1%} of the MACs, {took / wanted:.3f} x", flush=True)
            if abs(took / wanted - 1) <= AS_FAST:
                plans.append(plan)
                break
            aim *= wanted / took
    if not plans or problem.prepared is None:
        return None
    best = problem.prepared.best(plans, False)
    dense, _, _ = repaired(problem, best, problem.prepared)
    return apply_and_verify_(dense, best, problem.example_inputs)[0], best


def at_latency(graph: Any, groups: Any, found: Result, allocation: Allocation, aim: float) -> prunus.Plan | None:
    """The plan by MACs that is foretold to take so long: the largest share of them that takes no longer."""
    low, high, best = 0.05, 1.0, None
    for _ in range(12):
        share = (low + high) / 2
        budget = prunus.Budget.parse(f"macs<={100 * share:.3f}%")
        try:
            plan = make_plan(graph, groups, found.scores, budget=budget, allocation=allocation)
        except BudgetError:
            low = share
            continue
        low, high = (share, high) if plan.after["latency"] <= aim else (low, share)
        best = plan if plan.after["latency"] <= aim else best
    return best


def row(job: Job, model: nn.Module, plan: prunus.Plan, repeats: int) -> dict[str, Any]:
    """Time over that of the dense network, in turns with it; MACs, loss and accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = {n: session(m, job.inputs, Path(folder)) for n, m in (("dense", job.model), ("pruned", model))}
        times = interleaved(jobs, repeats)
    middle, low, high = ratio(times, "pruned", "dense")
    loss, accuracy = judged(model, job.held_out)
    return {
        "asked": plan.asked,
        "latency": round(min(times["pruned"]) / min(times["dense"]), 4),
        "median, quartiles": [round(v, 3) for v in (middle, low, high)],
        "dense ms": round(1e3 * statistics.median(times["dense"]), 3),
        "macs": round(plan.after.macs / plan.before.macs, 4),
        "loss": round(loss, 4),
        "top-1": round(accuracy, 2),
        "notes": [note for note in plan.notes if "latency" in note or "repair" in note],
    }


if __name__ == "__main__":
    sys.exit(main())
