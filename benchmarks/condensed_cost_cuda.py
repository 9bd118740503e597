"""Condensed linear layers on a GPU against every other way to multiply by the same weights.

    python benchmarks/condensed_cost.py --device cuda

Not run on a GPU yet. In Triton's interpreter all but the events and graphs runs on a CPU, and nothing is written (the
interpreter of Triton 3.5 needs numpy below 2.4):

    TRITON_INTERPRET=1 python benchmarks/condensed_cost.py --device interpreter --sizes 40 --batches 1 17

Every way has copies of its weights, three times the L2 cache together, and takes them in turn: a weight comes from
memory, as it does in a network. Times are those of a pass over all copies, between two events, interleaved: "called"
from Python, so with the launches where they are the slower part, and "replayed" as a CUDA graph, the GPU alone. The
roofline is what a product has to move (weights, columns, x and y, once) at the better bandwidth of a plain sum and a
plain copy in the same run. fp32 is fp32: without TF32, unless the settings that are written down say otherwise.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.sparse.layers import CondensedLinear
from prunus.sparse.operations import bagged
from record import interleaved, ratio, write

FEWEST, MOST = 16, 1024
"""Copies: enough to hide what starting a graph takes, and no more than memory and patience allow."""


class Way(NamedTuple):
    """One product for each copy of the weights, and the bytes that one of them has to move."""

    calls: list[Callable[[], Tensor]]
    moved: int


def size_of(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def drawn(size: int, kept: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Values and ascending columns [size, kept]."""
    generator = torch.Generator().manual_seed(0)
    index = torch.rand(size, size, generator=generator).topk(kept).indices.sort().values
    return torch.randn(size, kept, generator=generator).to(device), index.to(device)


def twin(weight: Any) -> Any:
    """A copy in memory of its own."""
    if isinstance(weight, tuple):
        return tuple(w.clone() for w in weight)
    # Sparse tensors can be cloned and not deep-copied, modules the other way round.
    return weight.clone() if isinstance(weight, Tensor) else copy.deepcopy(weight)


def ways(size: int, density: float, batch: int, device: torch.device, cache: int) -> dict[str, Way]:
    """Every way, checked against the dense product in double precision."""
    from prunus.kernels.triton import triton_product

    values, index = drawn(size, round(density * size), device)
    x = torch.randn(batch, size, generator=torch.Generator().manual_seed(1)).to(device)
    layer, half = CondensedLinear(values, index, size), CondensedLinear(values.bfloat16(), index, size)
    short, columns = layer.index, index.to(torch.int32)
    dense = layer.dense_weight().detach()
    starts = torch.arange(size + 1, dtype=torch.int32, device=device) * index.shape[1]
    csr = torch.sparse_csr_tensor(starts, columns.flatten(), values.flatten(), (size, size))
    values16, x16, across = values.bfloat16(), x.bfloat16(), x.t().contiguous()

    def by_csr(weight: Tensor) -> Tensor:
        # One example is a vector: cuSPARSE has a routine of its own for it.
        return (weight @ across[:, 0])[None] if batch == 1 else (weight @ across).t()

    # The weights, their bytes, the product with them, and whether it is one of bf16 inputs.
    plain, shorts = size_of(values, columns), size_of(values, short)
    shorts16 = size_of(values16, short)
    found: dict[str, tuple[Any, int, Callable[[Any], Tensor], bool]] = {
        "dense fp32": (dense, size_of(dense), lambda w: F.linear(x, w), False),
        "dense bf16": (dense.bfloat16(), size_of(dense) // 2, lambda w: F.linear(x16, w), True),
        "torch CSR, input given transposed": (csr, plain + size_of(starts), by_csr, False),
        "embedding_bag": ((values, columns), plain, lambda w: bagged(x, *w), False),
        "condensed": (layer, shorts, lambda w: w(x), False),
        "condensed, bf16 values": (half, shorts16, lambda w: w(x), False),
        "condensed, bf16": (half, shorts16, lambda w: w(x16), True),
        "condensed, as few": ((values, short), shorts, lambda w: triton_product(x, *w, few=batch), False),
        "condensed, as many": ((values, short), shorts, lambda w: triton_product(x, *w, few=0), False),
        "condensed, bf16, as few": ((values16, short), shorts16, lambda w: triton_product(x16, *w, few=batch), True),
        "condensed, bf16, as many": ((values16, short), shorts16, lambda w: triton_product(x16, *w, few=0), True),
    }
    wanted = x.double() @ dense.double().t()
    made = {}
    for name, (weight, count, call, of_halves) in found.items():
        copies = max(FEWEST, min(MOST, -(-3 * cache // count))) if cache else 2
        calls = [partial(call, w) for w in (weight, *(twin(weight) for _ in range(copies - 1)))]
        made[name] = Way(calls, count + (size_of(x) + wanted.numel() * 4) // (1 + of_halves))
        allowed = 0.05 if "bf16" in name else 1e-4
        for one in (calls[0], calls[-1]):
            error = float((one().double() - wanted).abs().max() / wanted.std(correction=0))
            assert error < allowed, f"{name}: off by {error:.1e}"
    return made


def called(calls: Sequence[Callable[[], object]], device: torch.device) -> Callable[[], float]:
    """Seconds a call, of one pass over all."""

    def run() -> float:
        if device.type != "cuda":
            begin = time.perf_counter()
            for call in calls:
                call()
            return (time.perf_counter() - begin) / len(calls)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / len(calls)

    return run


def replayed(calls: Sequence[Callable[[], object]], device: torch.device) -> Callable[[], float] | None:
    """As `called`, from a CUDA graph of the pass; None where there is none."""
    if device.type != "cuda":
        return None
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    # What a library sets up at its first call on a stream can not be captured.
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph, stream=side):
            for call in calls:
                call()
    except RuntimeError as error:
        print("no graph:", str(error).splitlines()[0])
        return None
    once = called([graph.replay], device)
    return lambda: once() / len(calls)


def bandwidth(device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Bytes a second, of reading far more than any cache holds once, and of copying it."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**18, device=device)
    target = torch.empty_like(source)
    jobs = {"sum": called([source.sum], device), "copy": called([partial(target.copy_, source)], device)}
    times = interleaved(jobs, repeats)
    return {name: [size_of(source) * (1 + (name == "copy")) / t for t in times[name]] for name in jobs}


def quartiles(times: Sequence[float]) -> str:
    """Median and quartiles in microseconds."""
    low, middle, high = statistics.quantiles(times, n=4)
    return f"{1e6 * middle:9.1f} ({1e6 * low:.1f} .. {1e6 * high:.1f})"


def show(made: dict[str, Way], by_call: dict[str, list[float]], by_graph: dict[str, list[float]], best: float) -> None:
    print(f"  {'':34s} {'called, us':>28s} {'replayed, us':>28s}  x fp32  x bf16  of the roofline")
    for name, way in made.items():
        times = by_graph if by_graph.keys() >= {name, "dense fp32", "dense bf16"} else by_call
        graph = quartiles(by_graph[name]) if name in by_graph else "-"
        share = way.moved / best / statistics.median(times[name])
        print(f"  {name:34s} {quartiles(by_call[name]):>28s} {graph:>28s} {ratio(times, 'dense fp32', name)[0]:7.2f} "
              f"{ratio(times, 'dense bf16', name)[0]:7.2f} {100 * share:8.0f} %", flush=True)  # fmt: skip


def measure(where: str, sizes: Sequence[int], densities: Sequence[float], batches: Sequence[int], repeats: int) -> None:
    """Compare all ways `where`: "cuda", or "interpreter" for a rehearsal on a CPU."""
    device = torch.device("cuda", torch.cuda.current_device()) if where == "cuda" else torch.device("cpu")
    cache = torch.cuda.get_device_properties(device).L2_cache_size if where == "cuda" else 0
    rows = []
    with torch.no_grad():
        rates = bandwidth(device, repeats)
        best = max(statistics.median(r) for r in rates.values())
        print(f"bandwidth {best / 1e9:.0f} GB/s, L2 cache {cache / 2**20:.0f} MiB")
        for size in sizes:
            for density in densities:
                for batch in batches:
                    made = ways(size, density, batch, device, cache)
                    jobs = {n: called(w.calls, device) for n, w in made.items()}
                    graphs = {n: g for n, w in made.items() if (g := replayed(w.calls, device)) is not None}
                    by_call, by_graph = interleaved(jobs, repeats), interleaved(graphs, repeats)
                    print(f"\n{size} x {size}, {100 * (1 - density):.0f} % zeros, batch {batch}")
                    show(made, by_call, by_graph, best)
                    facts = {n: {"copies": len(w.calls), "moved": w.moved} for n, w in made.items()}
                    rows.append({"size": size, "density": density, "batch": batch, "ways": facts,
                                 "called": by_call, "replayed": by_graph})  # fmt: skip
    if where != "cuda":
        print("a rehearsal: nothing written")
        return
    import triton

    settings = {"triton": triton.__version__, "cuda": torch.version.cuda, "l2": cache,
                "capability": torch.cuda.get_device_capability(device),
                "float32_matmul_precision": torch.get_float32_matmul_precision()}  # fmt: skip
    print("written to", write("condensed_cost_cuda", {"settings": settings, "bandwidth": rates, "rows": rows}))
