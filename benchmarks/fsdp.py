"""Is a transformer in shards (FSDP2) pruned as in one process, what does each process hold, and how do all end? (J8)

    python benchmarks/fsdp.py [--processes 2 4] [--width 256]

The same small transformer and data in one process without shards and in several with `fully_shard`. The table says
whether plans agree, how far gates (scores) and keep probabilities are apart, and how many bytes of parameters a process
holds; the last column, how many seconds pass from the death of one process to the end of all. Status 1 where a plan
differs, where memory does not fall, or where a survivor lives on for a minute.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import prunus
from options import Parser, scratch
from processes import apart
from prunus.pipeline.sharded import prune_sharded

PART, DIES = "PRUNUS_FSDP_PART", "PRUNUS_FSDP_DIES"
EXAMPLES, BATCH, TOKENS, CLASSES = 64, 16, 8, 4
METHODS = ("fisher", "dirichlet")
LIMIT = 60.0
Found = dict[str, Any]


class Block(nn.Module):
    """Attention in one head and a feed-forward part, each added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] to the same."""
        h = self.before(x)
        x = x + self.out(F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h)))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Transformer(nn.Module):
    """Blocks between an embedding and a head."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(16, width), nn.Linear(width, CLASSES)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, 16] to class scores [B, classes]."""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(x.mean(1))
        return scores


def shard(model: nn.Module) -> None:
    """Each block by itself, and what is left."""
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block)
    fully_shard(model)


def problem(args: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, examples and labels; the same in every process."""
    torch.manual_seed(0)
    model = Transformer(args.width, args.depth)
    x = torch.randn(EXAMPLES, TOKENS, 16)
    return model, x, x[:, :, :CLASSES].sum(1).argmax(1)


def held(model: nn.Module) -> int:
    """Bytes of the parameters that this process holds."""
    mine = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return sum(p.numel() * p.element_size() for p in mine)


def asked(method: str, args: Any) -> Found:
    """What is asked of either way."""
    chosen = prunus.DirichletPruning(min_steps=args.steps) if method == "dirichlet" else method
    return {"method": chosen, "target": "macs<=50%", "loss_fn": F.cross_entropy, "progress": False}


def told(plan: prunus.Plan, scores: Any, dense: int, smaller: int) -> Found:
    """What is compared, and bytes."""
    probability = {g.name: torch.tensor(g.keep_probability) for g in plan.groups if g.keep_probability is not None}
    return {"kept": plan.kept, "scores": dict(scores.values), "probability": probability, "bytes": (dense, smaller)}


def alone(args: Any) -> dict[str, Found]:
    """In one process, without shards."""
    model, x, y = problem(args)
    data = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    answers = {}
    for method in METHODS:
        done = prunus.prune(
            model, x[:2], data=data, repair=False, allocation=prunus.Allocation("global"), **asked(method, args)
        )
        answers[method] = told(done.plan, done.scores, held(model), held(done.model))
    return answers


def part(args: Any, folder: Path) -> None:
    """One of several processes; the last one may die in the middle of learning."""
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model, x, y = problem(args)
    with torch.device("meta"):
        skeleton = Transformer(args.width, args.depth)
    shard(model)
    calls = 0

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if DIES in os.environ and rank == world - 1 and calls == 2:
            (folder / "died").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return F.cross_entropy(outputs, targets)

    data = [(a[rank::world], b[rank::world]) for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)]
    answers = {}
    for method in METHODS:
        ways = asked(method, args) | ({"loss_fn": loss_fn} if DIES in os.environ else {})
        done = prune_sharded(model, skeleton, x[:2], shard=shard, data=data, **ways)
        answers[method] = told(done.plan, done.scores, held(model), held(done.model))
    torch.save(answers, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def launched(processes: int, args: Any, *, dies: bool = False) -> tuple[list[dict[str, Found]], float]:
    """What each of several processes found; or nothing, and how long all lived after one was killed."""
    folder = scratch() / f"{processes}{'dies' * dies}"
    folder.mkdir()
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", __file__),
        *("--width", str(args.width), "--depth", str(args.depth), "--steps", str(args.steps)),
    ]
    ours = {PART: str(folder), "OMP_NUM_THREADS": "1"} | ({DIES: "1"} if dies else {})
    done = subprocess.run(command, env={**os.environ, **ours}, capture_output=True, text=True, check=False)
    if dies:
        return [], time.time() - float((folder / "died").read_text())
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)], 0.0


def main() -> int:
    """Compare, print the table; or be one of the processes."""
    parser = Parser(__doc__, processes=[2], width=16, depth=2, steps=4)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--steps", type=int, default=16, help="that posteriors are learned in, at least")
    args = parser.parse_args()
    if PART in os.environ:
        part(args, Path(os.environ[PART]))
        return 0
    one, wrong = alone(args), 0
    print(
        "| processes | method | same plan | gates apart | probabilities apart | dense, bytes | smaller | ended after |"
    )
    print("|--:|---|---|--:|--:|--:|--:|--:|")
    for method, answer in one.items():
        dense, smaller = answer["bytes"]
        print(f"| 1 | {method} | | | | {dense:,} | {smaller:,} | |")
    for processes in args.processes:
        ranks, ended = launched(processes, args)[0], launched(processes, args, dies=True)[1]
        for method, answer in one.items():
            others = [r[method] for r in ranks]
            same = all(o["kept"] == answer["kept"] for o in others)
            gates, probabilities = (max(apart(answer[n], o[n]) for o in others) for n in ("scores", "probability"))
            most = [max(o["bytes"][which] for o in others) for which in (0, 1)]
            falls = all(m < 1.2 * whole / processes for m, whole in zip(most, answer["bytes"], strict=True))
            wrong += not same or not falls or ended > LIMIT
            print(
                f"| {processes} | {method} | {'yes' if same else 'NO'} | {gates:.1e} | {probabilities:.1e} "
                f"| {most[0]:,} | {most[1]:,} | {ended:.1f} s |"
            )
    print(f"{wrong} rows are wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
