"""Cost of a Dirichlet learning step against a plain training step of the same network (bar A6).

    python benchmarks/dirichlet_cost.py

ResNet-56 on 32 x 32 images, batch 128, random data: only cost is measured. Time is the thread's CPU time, interleaved.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import prunus
from nets import resnet8, resnet56
from options import Parser
from prunus.gates.frozen import frozen
from prunus.gates.gate import attach, recompute_products
from prunus.measure.memory import LiveBytes
from prunus.methods.dirichlet import DirichletPruning
from prunus.runtime.precision import autocast
from record import interleaved, ratio, write


def main() -> None:
    parser = Parser(__doc__, batch=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_repeats(9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(args.device)
    model = (resnet8 if args.smoke else resnet56)().to(device, memory_format=torch.channels_last)
    x = torch.randn(args.batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (args.batch,), device=device)
    groups = prunus.trace(model, x[:2]).groups()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    method = DirichletPruning()

    def train_step() -> None:
        model.train()
        with autocast(device, "auto"):
            loss = F.cross_entropy(model(x), y)
        sgd.zero_grad()
        loss.backward()
        sgd.step()

    def measured(step: Callable[[], None]) -> Callable[[], float]:
        def run() -> float:
            if device.type == "cuda":
                torch.cuda.synchronize()
                start = time.perf_counter()
                step()
                torch.cuda.synchronize()
                return time.perf_counter() - start
            start = time.process_time()
            step()
            return time.process_time() - start

        return run

    def peak(step: Callable[[], None]) -> int:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            step()
            return torch.cuda.max_memory_allocated()
        counter = LiveBytes()
        counter.count((list(model.parameters()), list(model.buffers()), x))
        with counter:
            step()
        return counter.peak

    with attach(model, groups, method.posterior) as gates:
        adam = torch.optim.Adam(gates.parameters(), lr=method.lr)

        def learning_step() -> None:
            gates.sample()
            with frozen(model):
                with recompute_products(), autocast(device, "auto"):
                    loss = F.cross_entropy(model(x), y)
                (loss + gates.penalty(50_000)).backward()
            adam.step()
            adam.zero_grad()
            gates.off()

        gates.off()
        times = interleaved({"train": measured(train_step), "learn": measured(learning_step)}, args.repeats)
        memory = {name: peak(step) for name, step in (("train", train_step), ("learn", learning_step))}
    middle, low, high = ratio(times, "learn", "train")
    print(f"{len(groups)} groups, {sum(g.units for g in groups)} concentrations")
    print(f"learning step / training step: {middle:.3f}  (quartiles {low:.3f} .. {high:.3f})")
    print(f"peak memory of a step: {memory['learn'] / memory['train']:.3f}")
    data = {"seconds": times, "time_ratio": (middle, low, high), "peak_bytes": memory, "batch": args.batch}
    print("written to", write(f"dirichlet_cost_{device.type}", data))


if __name__ == "__main__":
    main()
