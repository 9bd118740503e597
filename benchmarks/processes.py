"""Do two processes of `accelerate launch` find what one finds? Every method, and every kind of loader (F7).

    python benchmarks/processes.py [--processes 2] [--methods NAME ...]

A small convolutional network on digits; all processes together see the batches that one sees. Each method is shown
shares by a DistributedSampler, and two of them every other kind of share. The table says whether the plans agree and
how far scores and weights are apart, as a share of the largest. Status 1 where a plan differs or a number is further
apart than `--tolerance`. accelerate deals rows twice where they don't go round: give it a multiple of 64 examples.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

import prunus
from options import Parser, needs, scratch
from prunus.data import load_data
from prunus.methods.base import MaskMethod, PosteriorMethod, RoutingCriterion, StagedMethod
from prunus.methods.registry import method_names, resolve
from prunus.testing.experts import planted_experts

BATCH = 64
FOLDER = "PRUNUS_PROCESSES_FOLDER"
LOADERS = ("sampler", "workers", "stream", "streamed by workers", "given", "prepared", "prepared stream")
Found = dict[str, Any]


def network(norm: bool = False) -> nn.Module:
    """Two convolutions and two linear layers; no draws or statistics of its own, which processes would not share."""
    torch.manual_seed(0)
    first, second, third = (
        (nn.BatchNorm2d(8), nn.BatchNorm2d(12), nn.BatchNorm1d(32)) if norm else [nn.Identity() for _ in range(3)]
    )
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, stride=2), first, nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), second, nn.ReLU()),
        *(nn.Flatten(), nn.Linear(300, 32), third, nn.ReLU(), nn.Linear(32, 10)),
    )


def processes_now() -> tuple[int, int]:
    """This process, and how many there are."""
    state = PartialState(cpu=True)
    return state.process_index, state.num_processes


class Stream(IterableDataset[Any]):
    """Every `world`-th example from the `rank`-th on; of several workers each gives whole batches."""

    def __init__(self, rows: TensorDataset, rank: int, world: int) -> None:
        self.rows, self.rank, self.world = rows, rank, world

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for start in range(number * BATCH, len(self.rows), workers * BATCH):
            for index in range(start, min(start + BATCH, len(self.rows)))[self.rank :: self.world]:
                yield self.rows[index]


def loader_of(kind: str, rows: TensorDataset, rank: int, world: int) -> Any:
    """This process's share of the examples, the way `kind` deals them."""
    size = BATCH // world
    if kind in ("sampler", "workers"):
        share = DistributedSampler(rows, world, rank, shuffle=False)
        return DataLoader(rows, size, sampler=share, num_workers=2 if kind == "workers" else 0)
    if kind.startswith("stream"):
        return DataLoader(Stream(rows, rank, world), size, num_workers=2 if kind.endswith("workers") else 0)
    if kind == "given":
        return DataLoader(rows, BATCH, shuffle=True)
    data = Stream(rows, 0, 1) if kind.endswith("stream") else rows
    return Accelerator(cpu=True).prepare_data_loader(DataLoader(data, size), device_placement=False)


def found(rank: int, world: int, methods: list[str], examples: int, steps: int) -> dict[str, Found]:
    """What this process finds, by method and by loader."""
    data = load_data("digits").train
    rows = TensorDataset(data.normalise(data.inputs[:examples]), data.labels[:examples])
    plain, normed = (trained(network(norm), rows) for norm in (False, True))
    cases = {name: (name, "sampler") for name in methods}
    cases |= {
        f"{name}, {kind}": (name, kind) for name in methods if name in ("dirichlet", "fisher") for kind in LOADERS
    }
    answers = {}
    for case, (name, kind) in cases.items():
        start = time.perf_counter()
        answers[case] = one(name, loader_of(kind, rows, rank, world), normed if name == "bn_scale" else plain, steps)
        answers[case]["seconds"] = time.perf_counter() - start
        print(f"process {rank} of {world}: {case}", file=sys.stderr, flush=True)
    start = time.perf_counter()
    small = prunus.prune(plain, rows[:2][0], method="l1", target="macs<=50%", progress=False).model
    loader = loader_of("given", rows, rank, world)
    prunus.finetune(small, (loader, loader), prunus.FinetuneConfig(epochs=3, lr=0.05), progress=False)
    answers["recovery"] = {"kept": {}, "scores": {}, "weights": weights_of(small)}
    answers["recovery"]["seconds"] = time.perf_counter() - start
    return answers


def trained(model: nn.Module, rows: TensorDataset) -> nn.Module:
    """The dense network, the same in every process."""
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for epoch in range(4):
        for batch in torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch)).split(BATCH):
            x, y = rows[batch]
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def one(name: str, loader: Any, dense: nn.Module, steps: int) -> Found:
    """What one method finds."""
    method: Any = resolve(name)
    target: Any = "macs<=50%"
    example_inputs = next(iter(loader))[0][:2]
    options: dict[str, Any] = {}
    if isinstance(method, RoutingCriterion):
        dense, batches = planted_experts()
        rank, world = processes_now()
        loader = [(x[rank::world], y[rank::world]) for x, y in batches]
        example_inputs, target, options = batches[0][0][:2], "experts<=50%", {"allow": ["experts"]}
    elif isinstance(method, MaskMethod):
        method, target = replace(method, epochs=2, tune_epochs=1), "weight 25%"
    elif isinstance(method, StagedMethod):
        method = replace(method, epochs=2, min_steps=steps, tune_epochs=1)
    elif isinstance(method, PosteriorMethod):
        method = replace(method, min_steps=steps)
    result = prunus.prune(
        dense, example_inputs, method=method, target=target, data=loader, loss_fn=F.cross_entropy, progress=False,
        **options,
    )  # fmt: skip
    masks = {} if result.masked is None else {n: m.int().tolist() for n, m in result.masked.masks.items()}
    kept = {g.name: list(g.kept) for g in result.plan.groups} | masks
    return {"kept": kept, "scores": dict(result.scores.values), "weights": weights_of(result.model)}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Everything that the model holds."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def apart(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Largest difference between tensors of the same name, as a share of the largest number in the first's."""
    shares = [0.0]
    for name, value in one.items():
        if value.shape != two[name].shape:
            return float("inf")
        if value.numel():
            shares.append(
                float((value.double() - two[name].double()).abs().max() / value.double().abs().max().clamp(min=1e-12))
            )
    return max(shares)


def launched(processes: int, args: Any) -> list[dict[str, Found]]:
    """What each of several processes found."""
    folder = scratch() / str(processes)
    folder.mkdir()
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)),
        # Its own --cpu starts one process alone; this starts several, which the environment keeps on the CPU.
        *("--multi_gpu" if processes > 1 else "--cpu", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        *(__file__, "--examples", str(args.examples), "--steps", str(args.steps), "--methods", *args.methods),
    ]
    ours = {FOLDER: str(folder), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(command, env={**os.environ, **ours}, check=True)
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def table(one: dict[str, Found], several: list[dict[str, Found]], tolerance: float) -> int:
    """Print it; how many rows differ."""
    print(
        f"\n| method | same plan | scores apart | weights apart | seconds, 1 | {len(several)} |"
        "\n|---|---|--:|--:|--:|--:|"
    )
    wrong = 0
    for case, alone in one.items():
        same = all(alone["kept"] == ranks[case]["kept"] for ranks in several)
        scores = max(apart(alone["scores"], ranks[case]["scores"]) for ranks in several)
        weights = max(apart(alone["weights"], ranks[case]["weights"]) for ranks in several)
        wrong += not same or scores > tolerance or weights > tolerance
        seconds = f"{alone['seconds']:.1f} | {several[0][case]['seconds']:.1f}"
        print(f"| {case} | {'yes' if same else 'NO'} | {scores:.1e} | {weights:.1e} | {seconds} |")
    return wrong


def main() -> int:
    """Launch one and several processes, compare, print; or be one of them."""
    parser = Parser(__doc__, examples=128, steps=4, methods=["dirichlet", "fisher"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=method_names())
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--steps", type=int, default=24, help="that posteriors are learned in, at least")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    args = parser.parse_args()
    needs("mlxtend")
    if FOLDER in os.environ:
        rank, world = processes_now()
        warnings.simplefilter("ignore")
        torch.save(found(rank, world, args.methods, args.examples, args.steps), Path(os.environ[FOLDER]) / f"{rank}.pt")
        if world > 1:
            torch.distributed.destroy_process_group()
        return 0
    (one,), several = launched(1, args), launched(args.processes, args)
    wrong = table(one, several, args.tolerance)
    print(f"{len(one) - wrong} of {len(one)} rows agree")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
