"""What each special loop of condensed linear layers gains on this processor: the same product both ways, in one run.

    python benchmarks/condensed_parts.py [--size 4096] [--density 0.1]

One thread, CPU time, interleaved: gathers against single loads (one example), the weight as it lies against packed by
blocks of columns (64 fp32 examples), widening against products of bf16 pairs (64 bf16 examples). Loops that the
library would not choose on this processor are timed too, if it can run them.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from options import Parser, needs
from prunus.kernels import products as loops
from prunus.kernels.packed import block_for, pack, packed_product
from prunus.kernels.processor import has_dots
from record import interleaved, ratio, timed, write


def with_choice(name: str, value: bool, x: Tensor, values: Tensor, index: Tensor) -> Callable[[], object]:
    """The product with a fact about the processor given, its loop compiled already."""
    compiled: dict[str, Callable[..., None]] = {}

    def made(maker: str) -> Callable[..., Callable[..., None]]:
        original = getattr(loops, maker).__wrapped__

        def once(*arguments: object) -> Callable[..., None]:
            if maker not in compiled:
                with patch.object(loops, name, lambda: value):
                    compiled[maker] = original(*arguments)
            return compiled[maker]

        return once

    makers = {maker: made(maker) for maker in ("_gather", "_by_rows")}

    def job() -> object:
        with patch.multiple(loops, **makers):
            return loops.looped(x, values, index)

    return job


def main() -> None:
    parser = Parser(__doc__, size=256)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_repeats(15)
    args = parser.parse_args()
    needs("numba")
    torch.set_num_threads(1)
    size, k = args.size, round(args.density * args.size)
    generator = np.random.default_rng(0)
    columns = np.sort(np.stack([generator.permutation(size)[:k] for _ in range(size)]), 1)
    index, values = torch.from_numpy(columns).to(torch.int16), torch.randn(size, k)
    x, one, half = torch.randn(64, size), torch.randn(1, size), values.bfloat16()
    found = {}
    for kind, weight in (("fp32", values), ("bf16", half)):
        found[f"one example, {kind} values: gathers / single loads"] = (
            with_choice("slow_gathers", False, one, weight, index),
            with_choice("slow_gathers", True, one, weight, index),
        )
        block = block_for(64, weight, index, size)
        if block is not None:
            packed = pack(weight, index, size, block)
            found[f"64 fp32 examples, {kind} values: as it lies / packed"] = (
                lambda weight=weight: loops.looped(x, weight, index),
                lambda weight=weight, packed=packed: packed_product(x, weight, index, packed),
            )
    if has_dots():
        found["64 bf16 examples: widened / products of pairs"] = (
            with_choice("fast_dots", False, x.bfloat16(), half, index),
            with_choice("fast_dots", True, x.bfloat16(), half, index),
        )
    rows = {}
    for name, (plain, special) in found.items():
        times = interleaved({"plain": timed(plain, 3), "special": timed(special, 3)}, args.repeats)
        middle, low, high = ratio(times, "plain", "special")
        rows[name] = {"ratio": (middle, low, high), "seconds": times}
        print(f"{name}: {middle:.2f} ({low:.2f} .. {high:.2f})", flush=True)
    print("written to", write(f"condensed_parts_{size}_{args.density:g}", {"rows": rows}))


if __name__ == "__main__":
    main()
