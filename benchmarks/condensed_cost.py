"""Condensed linear layers against every other way to multiply by the same weights (bar C4).

    python benchmarks/condensed_cost.py
    python benchmarks/condensed_cost.py --device cuda    (see condensed_cost_cuda.py)

One thread, CPU time, interleaved. The roofline is the slower of two, both measured in the same run: reading the values
(of each layer's own type) and indices once at the bandwidth of a plain sum, and the multiply-adds at the rate of a
dense fp32 product in the cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import condensed_cost_cuda
from options import Parser, needs, skip
from prunus.sparse.layers import CondensedLinear
from record import interleaved, timed, write

BF16_VALUES, BF16_BOTH = "condensed, bf16 values", "condensed, bf16 values and inputs"


def bandwidth(count: int) -> Callable[[], float]:
    """Seconds to read `count` bytes once."""
    data = torch.ones(count // 4)
    return timed(data.sum, 3)


def arithmetic() -> Callable[[], float]:
    """Seconds for a million multiply-adds in a dense product inside the cache."""
    a, b = torch.randn(128, 128), torch.randn(128, 128)
    one = timed(lambda: a @ b, 50)
    return lambda: one() / (128**3 / 1e6)


def ways(size: int, density: float, batch: int) -> tuple[dict[str, Callable[[], Any]], CondensedLinear, int]:
    """Every way, checked against the dense product."""
    import scipy.sparse

    k = round(density * size)
    generator = np.random.default_rng(0)
    index = torch.from_numpy(np.sort(np.stack([generator.permutation(size)[:k] for _ in range(size)]), 1))
    values = torch.randn(size, k)
    layer = CondensedLinear(values, index, size)
    half = CondensedLinear(values.bfloat16(), index, size)
    dense = layer.dense_weight().detach()
    sparse = scipy.sparse.csr_array(dense.numpy())
    csr = dense.to_sparse_csr()
    narrow, x = index.to(torch.int32), torch.randn(batch, size)
    across, dense16, x16, x_numpy = x.t().contiguous(), dense.bfloat16(), x.bfloat16(), x.t().contiguous().numpy()
    found: dict[str, Callable[[], Any]] = {
        "dense fp32": lambda: x @ dense.t(),
        "dense bf16": lambda: x16 @ dense16.t(),
        "torch CSR": lambda: csr @ across,
        "scipy CSR": lambda: sparse @ x_numpy,
        "embedding_bag, input given transposed": lambda: F.embedding_bag(
            narrow, across, per_sample_weights=values, mode="sum"
        ),
        "condensed": lambda: layer(x),
        BF16_VALUES: lambda: half(x),
        BF16_BOTH: lambda: half(x16),
    }
    wanted = x @ dense.t()
    for name, near in (("condensed", 1e-5), (BF16_VALUES, 5e-3), (BF16_BOTH, 1e-2)):
        assert (found[name]() - wanted).norm() <= near * wanted.norm(), name
    return found, layer, k


def main() -> None:
    parser = Parser(__doc__, sizes=[64], densities=[0.25], batches=[1, 2])
    parser.add_argument("--device", choices=["cpu", "cuda", "interpreter"], default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.05])
    parser.add_argument("--batches", type=int, nargs="+", help="default 1 64, with --device cuda 1 8 64")
    parser.add_repeats(9)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        skip("no CUDA device")
    if args.device != "cpu":
        needs("triton")
        batches = args.batches or [1, 8, 64]
        condensed_cost_cuda.measure(args.device, args.sizes, args.densities, batches, args.repeats)
        return
    needs("scipy", "numba")
    torch.set_num_threads(1)
    rows = []
    with torch.no_grad():
        for size in args.sizes:
            for density in args.densities:
                for batch in args.batches or [1, 64]:
                    found, layer, k = ways(size, density, batch)
                    places = layer.index.element_size()
                    jobs = {n: timed(j, 5 if batch == 1 else 1) for n, j in found.items()}
                    jobs |= {
                        "read": bandwidth(size * k * (4 + places)),
                        "read, bf16 values": bandwidth(size * k * (2 + places)),
                        "multiply": arithmetic(),
                    }
                    times = interleaved(jobs, args.repeats)
                    middle = {n: statistics.median(t) for n, t in times.items()}
                    products = middle["multiply"] * size * k * batch / 1e6
                    roofs = {"condensed": max(middle["read"], products)}
                    roofs |= dict.fromkeys((BF16_VALUES, BF16_BOTH), max(middle["read, bf16 values"], products))
                    best = min(middle["dense fp32"], middle["dense bf16"])
                    zeros = f"{100 * (1 - density):.0f} % zeros"
                    print(f"\n{size} x {size}, {zeros}, batch {batch}, best dense {1e3 * best:.2f} ms")
                    for name in found:
                        share = f", {100 * roofs[name] / middle[name]:.0f} % of the roofline" if name in roofs else ""
                        ratios = [d / t for d, t in zip(times["dense fp32"], times[name], strict=True)]
                        quartiles = statistics.quantiles(ratios, n=4)
                        print(f"  {name:40s} {statistics.median(ratios):6.2f} x dense fp32 "
                              f"({quartiles[0]:.2f} .. {quartiles[2]:.2f}){share}", flush=True)  # fmt: skip
                    rows.append({"size": size, "density": density, "batch": batch, "roofline": roofs, "seconds": times})
    print("written to", write("condensed_cost_cpu", {"rows": rows}))


if __name__ == "__main__":
    main()
