"""Condensed 3 x 3 convolutions against the best dense one, on a CPU (beside bar C4, which asks for linear layers).

    python benchmarks/condensed_conv_cost.py

One thread, CPU time, interleaved, fp32; dense in the layout of the two that is faster in the median. `patches` is the
same condensed weight multiplied by the copied-out patches of the image.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import nn

from options import Parser
from prunus.kernels import products as loops
from prunus.masks.patterns import Pattern
from prunus.masks.sampling import gumbel, largest
from prunus.sparse.layers import condense
from record import interleaved, ratio, timed, write

SHAPES = [(64, 56), (128, 28), (256, 14), (512, 7), (16, 32)]
"""Channels in and out, height and width: the stages of a ResNet on ImageNet, and the first of one on CIFAR-10."""


def ways(channels: int, size: int, text: str, batch: int) -> dict[str, Callable[[], object]]:
    """Every way, checked against the dense one."""
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    layout = Pattern.parse(text).layout(conv, "conv")
    mask = largest(gumbel(layout.rows, layout.n, (0,)), layout.k)
    with torch.no_grad():
        conv.weight.mul_(layout.on_weight(mask))
    small, x = condense(conv, layout, mask), torch.randn(batch, channels, size, size)
    last = copy.deepcopy(conv).to(memory_format=torch.channels_last)
    x_last = x.to(memory_format=torch.channels_last)

    def patches() -> object:
        with patch.object(loops, "available", lambda: False):
            return small(x)

    assert torch.allclose(small(x), conv(x), atol=1e-4)
    return {"dense": lambda: conv(x), "dense, channels-last": lambda: last(x_last),
            "condensed": lambda: small(x), "patches": patches}  # fmt: skip


def main() -> None:
    parser = Parser(__doc__, patterns=["weight 10%", "kernel 25%"], batches=[1])
    parser.add_argument("--patterns", nargs="+", default=["weight 10%", "weight 5%", "kernel 10%"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_repeats(9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with torch.no_grad():
        for channels, size in [(8, 8)] if args.smoke else SHAPES:
            for text in args.patterns:
                for batch in args.batches:
                    jobs = {n: timed(j, 3) for n, j in ways(channels, size, text, batch).items()}
                    times = interleaved(jobs, args.repeats)
                    best = min(("dense", "dense, channels-last"), key=lambda n: statistics.median(times[n]))
                    found = {n: ratio(times, best, n) for n in ("condensed", "patches")}
                    said = ", ".join(f"{n} {m:.2f} x ({a:.2f} .. {b:.2f})" for n, (m, a, b) in found.items())
                    print(f"{channels} x {size}, {text}, batch {batch}: {said} of {best}", flush=True)
                    rows.append({"channels": channels, "size": size, "pattern": text, "batch": batch,
                                 "best": best, "ratios": found, "seconds": times})  # fmt: skip
    print("written to", write("condensed_conv_cost_cpu", {"rows": rows}))


if __name__ == "__main__":
    main()
