"""Do keep probabilities mean what they say? Posteriors learned anew on halves of the data (bar I10).

    python benchmarks/keep_probabilities.py --data DIR --weights FILE [--examples 22500] [--splits 4]
    python benchmarks/keep_probabilities.py --model digits --cache DIR [--only rbp sbp taylor]

The trained network stays; its training images are split at random into disjoint halves, and each half is pruned from
with a seed of its own. For every ordered pair of runs and every unit of a group that loses some in the first one: what
the first run's plan states, against whether the second run's scores keep the unit at the first plan's size of the
group. `before`: the probability under the posterior of one learning. `own sizes`: against the second run's own plan.
Pairs share runs, so they are not independent.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from given import brief, cifar10, resnet
from options import Parser, cache_of, smoking
from prunus.data.datasets import Batches, DataSource
from prunus.data.sources import load_data
from prunus.methods.registry import resolve
from prunus.pipeline.demo import lenet5, train_dense
from prunus.plan.allocation import Allocation
from prunus.plan.keeping import UNDECIDED
from record import Log, results

BINS = 10
Row = dict[str, Any]


def network(args: argparse.Namespace) -> tuple[nn.Module, DataSource]:
    """The trained network and its data."""
    if args.model == "resnet20":
        return resnet(20, args), cifar10(args)
    data = load_data("digits", validation=500, seed=0)
    net, _ = lenet5(0)
    file = cache_of(args) / "keep-probabilities-lenet5.pt"
    if file.exists():
        net.load_state_dict(torch.load(file, weights_only=True))
    else:
        train_dense(net, data, epochs=6, progress=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), file)
    return net.eval(), data


def one(args: argparse.Namespace, dense: nn.Module, data: DataSource, name: str, split: int, half: int) -> Row:
    """What one learning scores, keeps and states."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(100 + split))
    size = min(args.examples, len(data.train) // 2)
    few = data.train.subset(order[half * size : (half + 1) * size])
    seed, start = 2 * split + half, time.process_time()
    result = prunus.prune(
        dense,
        data.example_inputs,
        method=brief(resolve(name)),
        target=args.budget,
        data=Batches(few, 64, shuffle=True, seed=seed),
        loss_fn=F.cross_entropy,
        allocation=Allocation(scope="global"),
        repair=False,
        seed=seed,
        progress=False,
    )
    found, groups = result.scores, {g.name: g for g in result.plan.groups}
    cut = [n for n, g in groups.items() if len(g.kept) < g.units]
    return {
        "examples": size,
        "seconds": time.process_time() - start,
        "values": {n: digits(found.values[n]) for n in groups},
        "kept": {n: list(g.kept) for n, g in groups.items()},
        "stated": {n: list(groups[n].keep_probability or ()) for n in cut},
        "before": {
            n: digits(found.posteriors[n].keep_probability(len(groups[n].kept))) for n in cut if n in found.posteriors
        },
    }


def digits(values: Tensor) -> list[float]:
    """Numbers of fp32 without the digits that it doesn't have."""
    return [float(f"{value:.7g}") for value in values.tolist()]


def pairs(rows: list[Row], column: str, *, apart: bool = False, own: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Stated probabilities of a run's group, and whether another run keeps its units, fp64 [K] each.

    Args:
        rows: of the runs.
        column: where the probabilities are.
        apart: of the two halves of one split alone, which share no image.
        own: keep as many as the other run's plan does, instead of the first one's.
    """
    for row in rows:
        for other in rows:
            if other is row or (apart and (other["split"] != row["split"])):
                continue
            for name, stated in row[column].items():
                kept = torch.tensor(other["kept"][name])
                if not own:
                    kept = torch.tensor(other["values"][name]).topk(len(row["kept"][name])).indices
                yield torch.tensor(stated).double(), torch.zeros(len(stated)).double().index_fill(0, kept, 1.0)


def reliability(found: list[tuple[Tensor, Tensor]]) -> tuple[float, float, list[tuple[int, float, float]]]:
    """Expected calibration error over ten bins of equal width, Brier score, and (number, stated, kept) of each bin."""
    stated, kept = (torch.cat([pair[i] for pair in found]) for i in (0, 1))
    place = (stated * BINS).long().clamp(max=BINS - 1)
    lines = []
    for number in range(BINS):
        inside = place == number
        if bool(inside.any()):
            lines.append((int(inside.sum()), float(stated[inside].mean()), float(kept[inside].mean())))
    error = sum(n * abs(p - y) for n, p, y in lines) / len(stated)
    return error, float((stated - kept).square().mean()), lines


def undecided(rows: list[Row], column: str) -> float:
    """Share of the units of groups that lose some whose probability lies between the two bounds."""
    stated = torch.cat([torch.tensor(p) for row in rows for p in row[column].values()])
    return float(((stated > UNDECIDED[0]) & (stated < UNDECIDED[1])).double().mean())


def told(rows: list[Row]) -> str:
    """Everything about the runs of one method, as text."""
    lines = []
    for column in ("before", "stated"):
        if not any(row[column] for row in rows):
            continue
        error, brier, bins = reliability(list(pairs(rows, column)))
        apart, own = (reliability(list(pairs(rows, column, **{k: True})))[0] for k in ("apart", "own"))
        lines.append(
            f"{column}: ECE {error:.3f} (disjoint halves alone {apart:.3f}, own sizes {own:.3f}), Brier {brier:.3f}, "
            f"undecided {100 * undecided(rows, column):.0f} %"
        )
        lines += ["| n | stated | kept |", "|---|---|---|", *(f"| {n:,} | {p:.3f} | {y:.3f} |" for n, p, y in bins)]
    return "\n".join(lines)


def main() -> None:
    parser = Parser(__doc__, splits=1, examples=24, only=["dirichlet", "taylor"])
    parser.add_argument("--model", choices=("resnet20", "digits"), default="resnet20")
    parser.small |= {"data": None, "weights": None}
    parser.add_argument("--data", metavar="DIR", help="folder of CIFAR-10's binary version; made up with --smoke")
    parser.add_argument("--weights", metavar="FILE", help="akamaster's checkpoint; random with --smoke")
    parser.add_cache()
    parser.add_argument("--splits", type=int, default=4, help="random splits into halves: two runs each")
    parser.add_argument("--examples", type=int, default=22_500, help="training images of a half, at most")
    parser.add_argument("--budget", default="macs<=50%")
    parser.add_argument("--only", nargs="*", default=["dirichlet"], help="methods")
    args = parser.parse_args()
    if args.model == "resnet20" and not smoking() and not (args.data and args.weights):
        parser.error("--model resnet20 needs --data and --weights")
    torch.set_num_threads(1)
    dense, data = network(args)
    log = Log(results() / f"keep_probabilities_{args.model}.jsonl")
    for name in args.only:
        key = {"name": f"{args.model} {args.budget}", "asked": args.examples, "label": name}
        for split in range(args.splits):
            for half in (0, 1):
                place = {**key, "split": split, "half": half}
                if not log.has(place):
                    log.add(
                        {**place, **one(args, dense, data, name, split, half)}, "values", "kept", "stated", "before"
                    )
        rows = [r for r in log.rows if all(r[k] == v for k, v in key.items()) and r["split"] < args.splits]
        print(f"{name}, {len(rows)} runs of {rows[0]['examples']} images\n{told(rows)}")


if __name__ == "__main__":
    main()
