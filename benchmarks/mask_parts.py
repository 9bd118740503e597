"""What a draw of masks is made of: noise, selection, gradient of the relaxation; compiled and by torch (part of C5).

    python benchmarks/mask_parts.py [--rows 300] [--inputs 784] [--kept 78]

One fp32 layer of logits, thread CPU time, interleaved; nanoseconds per element, and the ratio of torch to compiled.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from unittest.mock import patch

import torch

from options import Parser, needs
from prunus.kernels import masks as compiled
from prunus.masks.sampling import gumbel, largest, vector_jacobian
from record import interleaved, ratio, timed, write


def timed_by_torch(work: Callable[[], object], inner: int) -> Callable[[], float]:
    """`timed` where numba is not used."""
    run = timed(work, inner)

    def without_numba() -> float:
        with patch.object(compiled, "available", lambda: False):
            return run()

    return without_numba


def main() -> None:
    parser = Parser(__doc__, rows=20)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--inputs", type=int, default=784)
    parser.add_argument("--kept", type=int, default=78)
    parser.add_repeats(15)
    args = parser.parse_args()
    needs("numba")
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(args.rows, args.inputs, generator=generator)
    z = logits + gumbel(args.rows, args.inputs, (0, 0))
    mask, gradient = largest(z, args.kept), torch.randn(args.rows, args.inputs, generator=generator)
    parts: dict[str, Callable[[], object]] = {
        "noise": lambda: gumbel(args.rows, args.inputs, (0, 1)),
        "gradient": lambda: vector_jacobian(z, mask, gradient.clone(), args.kept, 1.0, "draw"),
    }
    jobs = {"selection": timed(lambda: largest(z, args.kept), 20), "topk": timed(lambda: z.topk(args.kept, 1), 20)}
    jobs |= {f"{n}, compiled": timed(work, 20) for n, work in parts.items()}
    jobs |= {f"{n}, torch": timed_by_torch(work, 20) for n, work in parts.items()}
    times = interleaved(jobs, args.repeats, warmup=2)
    found = {n: 1e9 * statistics.median(t) / z.numel() for n, t in times.items()}
    for name, value in found.items():
        print(f"{name:20} {value:6.2f} ns an element")
    ratios = {n: ratio(times, f"{n}, torch", f"{n}, compiled") for n in parts}
    ratios["selection"] = ratio(times, "topk", "selection")
    for name, (middle, low, high) in ratios.items():
        print(f"{name:20} {middle:6.2f} times faster (quartiles {low:.2f} .. {high:.2f})")
    settings = {"rows": args.rows, "inputs": args.inputs, "kept": args.kept}
    print("written to", write("mask_parts", {"nanoseconds": found, "ratios": ratios, **settings}))


if __name__ == "__main__":
    main()
