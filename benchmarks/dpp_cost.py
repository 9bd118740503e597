"""Cost of a step of dynamic probabilistic pruning against a plain training step (bar C5).

    python benchmarks/dpp_cost.py

ResNet-20 with the pattern "kernel 50%" on its 3 x 3 convolutions, and with "filter 50%" on the inner ones of the
blocks (for which the issue has no bar), LeNet-300-100 with "weight 10%"; batch 128, random data; interleaved, thread
CPU time. Memory is what lives at the peak of a step, beyond parameters, gradients and the optimiser's state, in
multiples of the masked weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from nets import LeNet300, resnet8, resnet20
from options import Parser
from prunus import trace
from prunus.masks.filter_masks import MaskedUnits
from prunus.masks.filters import gated_filters
from prunus.masks.layers import MaskedWeight, layer_of, masked_weights
from prunus.measure.memory import LiveBytes
from prunus.methods.dpp import DynamicProbabilisticPruning
from record import interleaved, ratio, write

JOBS = {
    "resnet20": (resnet20, "kernel 50%", (3, 32, 32), "conv", 1.3, 1),
    "resnet20, filters": (resnet20, "filter 50%", (3, 32, 32), "conv1", 1.3, 1),
    "lenet300": (LeNet300, "weight 10%", (1, 28, 28), "fc", 2.0, 1),
    "lenet300, a mask for two steps": (LeNet300, "weight 10%", (1, 28, 28), "fc", 2.0, 2),
}
"""Network, pattern, shape of an example, which layers, bar, steps that share a drawn mask."""


def masked_layers(model: nn.Module, kind: str) -> list[str]:
    """The layers that get a pattern: all but the network's first convolution and its last layer."""
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and kind in n]
    return names[1:] if kind.startswith("conv") else names[:-1]


def gates_of(
    model: nn.Module, twin: nn.Module, masks: Mapping[str, MaskedWeight], shape: tuple[int, ...]
) -> AbstractContextManager[None]:
    """Where filters of the model are masked, as the analysis of its twin says; nothing for masks inside weights."""
    units = {n: m for n, m in masks.items() if isinstance(m, MaskedUnits)}
    if not units:
        return nullcontext()
    return gated_filters(model, trace(twin.eval(), torch.randn(2, *shape)), units, "example")


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def timed(step: Callable[[], None], inner: int) -> Callable[[], float]:
    def run() -> float:
        start = time.process_time()
        for _ in range(inner):
            step()
        return time.process_time() - start

    return run


def temporary_bytes(step: Callable[[], None], model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Most bytes that a step holds at once beyond parameters, gradients, buffers and the optimiser's state."""
    step()
    counter = LiveBytes()
    counter.count([t for p in model.parameters() for t in (p, p.grad, *optimizer.state[p].values()) if t is not None])
    counter.count(list(model.buffers()))
    held = counter.live
    with counter:
        for _ in range(2):
            step()
    return counter.peak - held


def main() -> None:
    parser = Parser(__doc__, batch=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_repeats(9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name, (make, pattern, shape, kind, bar, shared) in JOBS.items():
        make = resnet8 if args.smoke and make is resnet20 else make
        torch.manual_seed(0)
        plain, masked = make().train(), make().train()
        x, y = torch.randn(args.batch, *shape), torch.randint(0, 10, (args.batch,))
        if len(shape) == 3 and shape[0] == 3:
            x = x.to(memory_format=torch.channels_last)
            plain, masked = (m.to(memory_format=torch.channels_last) for m in (plain, masked))
        layers = masked_layers(masked, kind)
        masks = DynamicProbabilisticPruning(pattern=pattern, resample_every=shared).masks(masked, layers)
        weights = 4 * sum(layer_of(masked, n).weight.numel() for n in layers)
        with masked_weights(masked, masks), gates_of(masked, make(), masks, shape):
            models = {"plain": plain, "dpp": masked}
            adam = {n: torch.optim.Adam(m.parameters(), lr=1e-6, fused=True) for n, m in models.items()}
            steps = {n: step_of(m, adam[n], x, y) for n, m in models.items()}
            inner = 1 if kind.startswith("conv") else 20
            times = interleaved({n: timed(s, inner) for n, s in steps.items()}, args.repeats)
            memory = {n: temporary_bytes(s, models[n], adam[n]) for n, s in steps.items()}
        middle, low, high = ratio(times, "dpp", "plain")
        extra = (memory["dpp"] - memory["plain"]) / weights
        print(f"{name}, {pattern}: step {middle:.3f} (quartiles {low:.3f} .. {high:.3f}), bar {bar}; "
              f"extra memory {extra:.2f} x masked weights, bar 3", flush=True)  # fmt: skip
        found[name] = {
            "seconds": times, "time_ratio": (middle, low, high), "temporary_bytes": memory, "masked_bytes": weights,
            "pattern": pattern, "batch": args.batch, "resample_every": shared,
        }  # fmt: skip
    print("written to", write("dpp_cost_cpu", found))


if __name__ == "__main__":
    main()
