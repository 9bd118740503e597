"""The compiled loops (numba, extra `sparse`) for products with a condensed weight on a CPU.

One to three examples are gathered weight by weight. More go through a loop that adds, for each weight, its value times
a row of the transposed input: 16 to 64 examples at once, whose sums stay in vector registers until the row is done;
16 rows of sums are turned back at a time. It is written in LLVM's vectors, which LLVM splits into what the processor
has. Arrays are given by their addresses: small products would take longer to call than to compute.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from prunus.kernels.addresses import array_at
from prunus.kernels.dots import row_of_dots
from prunus.kernels.gathers import row_of_loads
from prunus.kernels.processor import fast_dots, slow_gathers
from prunus.kernels.tiles import transposed_tile
from prunus.kernels.vectors import LANES, MOST_VECTORS, row_of_sums

FEW = 3
"""Up to so many examples are gathered one by one, which is faster."""
PRODUCTS_FOR_A_THREAD = 4_000_000
"""Multiply-adds below which another thread costs more than it saves."""


@cache
def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def looped(x: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """The product [B, O] of x [B, I] with values [O, k], fp32 or bf16, at index [O, k], without a gradient.

    Sums are fp32 whatever x is. Many bf16 examples are read as they are, half of the memory of fp32 ones.
    """
    if x.dtype == torch.bfloat16 and len(x) > LANES and x.shape[1] % 2 == 0:
        return _many(x.contiguous(), values.contiguous(), index.contiguous()).to(x.dtype)
    if x.dtype != torch.float32:
        return looped(x.float(), values, index).to(x.dtype)
    x, values, index = x.contiguous(), values.contiguous(), index.contiguous()
    (examples, inputs), (rows, k) = x.shape, values.shape
    out = x.new_empty(examples, rows)
    if examples <= FEW:
        loop = _gather(values.dtype, index.dtype)
        loop(values.data_ptr(), index.data_ptr(), x.data_ptr(), out.data_ptr(), k, inputs, rows, examples)
        return out
    return _many(x, values, index)


def _many(x: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """`looped` for more examples, fp32 or bf16; the product is fp32."""
    (examples, inputs), (rows, k) = x.shape, values.shape
    paired, most = x.dtype == torch.bfloat16, LANES * MOST_VECTORS
    lay, at_once = (_lay_pairs_across(), 2 * LANES) if paired else (lay_across(), LANES)
    out = x.new_empty(examples, rows, dtype=torch.float32)
    across = x.new_empty(inputs, min(most, -(-examples // at_once) * at_once))
    for start in range(0, examples, most):
        part = min(most, examples - start)
        vectors = -(-part // at_once) * at_once // LANES
        lay(x[start].data_ptr(), across.data_ptr(), part, inputs, vectors * LANES)
        given = (values.data_ptr(), index.data_ptr(), across.data_ptr(), out[start].data_ptr(), k, inputs, rows, part)
        loop = _by_rows(vectors, values.dtype, index.dtype, paired)
        over_rows(loop, given, rows, rows * k * vectors * LANES)
    return out


def over_rows(loop: Callable[..., None], given: Sequence[Any], rows: int, products: int) -> None:
    """Run loop(*given, first, last) over all rows, in as many threads as torch has and the products are worth."""
    threads = max(1, min(torch.get_num_threads(), products // PRODUCTS_FOR_A_THREAD, rows))
    if threads == 1:
        return loop(*given, 0, rows)
    edges = [rows * part // threads for part in range(threads + 1)]
    # A pool for each product: one kept would not survive a fork, and this one costs little beside the work.
    with ThreadPoolExecutor(threads) as pool:
        for part in [pool.submit(loop, *given, *between) for between in pairwise(edges)]:
            part.result()


def plain(tensor: Tensor) -> Any:
    """As numpy: bf16 as its bits, shorts as unsigned (columns beyond 32,767 are what they were)."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy().view("uint16") if tensor.dtype == torch.int16 else tensor.numpy()


@cache
def kinds(values: torch.dtype, index: torch.dtype) -> tuple[Any, Any]:
    """What the arrays hold for numpy; see `plain`."""
    return plain(torch.empty(0, dtype=values)).dtype.type, plain(torch.empty(0, dtype=index)).dtype.type


@cache
def _gather(values_as: torch.dtype, index_as: torch.dtype) -> Callable[..., None]:
    """The loop for a few examples, one after the other; arrays by their addresses."""
    import numba
    import numpy as np

    number, column = kinds(values_as, index_as)
    compiled, array = numba.njit(fastmath=True, nogil=True), array_at()
    if values_as == torch.bfloat16:
        widened = compiled(lambda value: np.int32(np.uint32(value) << np.uint32(16)).view(np.float32))
    else:
        widened = compiled(lambda value: value)
    if index_as == torch.int16 and slow_gathers():
        most_of = row_of_loads(from_bits=values_as == torch.bfloat16)
    else:
        most_of = compiled(lambda values, index, row, o: (np.float32(0), 0))

    def gather(
        values_at: int, index_at: int, x_at: int, out_at: int, k: int, inputs: int, rows: int, examples: int
    ) -> None:
        values = array(values_at, number, (rows, k))
        index = array(index_at, column, (rows, k))
        x = array(x_at, np.float32, (examples, inputs))
        out = array(out_at, np.float32, (examples, rows))
        for b in range(examples):
            row = x[b]
            for o in range(rows):
                total, done = most_of(values, index, row, o)
                for j in range(done, k):
                    total += widened(values[o, j]) * row[index[o, j]]
                out[b, o] = total

    return compiled(gather)  # type: ignore[no-any-return]


@cache
def lay_across() -> Callable[..., None]:
    """Compiled: x [B, I] transposed to [I, width], with zeros for the examples that x lacks."""
    import numba
    import numpy as np

    array, tile = array_at(), transposed_tile()

    def lay_across(x_at: int, across_at: int, examples: int, inputs: int, width: int) -> None:
        x = array(x_at, np.float32, (examples, inputs))
        across = array(across_at, np.float32, (inputs, width))
        in_tiles, covered = examples - examples % LANES, inputs - inputs % LANES
        for i in range(0, covered, LANES):
            for b in range(0, in_tiles, LANES):
                tile(x, b, i, across, i, b)
        for i in range(inputs):
            for b in range(in_tiles if i < covered else 0, examples):
                across[i, b] = x[b, i]
            for b in range(examples, width):
                across[i, b] = 0

    return numba.njit(nogil=True)(lay_across)  # type: ignore[no-any-return]


@cache
def _lay_pairs_across() -> Callable[..., None]:
    """Compiled: bf16 x [B, I] transposed to words [I, width / 2] as `row_of_sums` reads them in pairs; I is even.

    A word of x holds two columns of one example, a word across two examples of one column, 16 apart.
    """
    import numba
    import numpy as np

    array, tile = array_at(), transposed_tile()
    low, high, half = np.uint32(0xFFFF), np.uint32(0xFFFF0000), np.uint32(16)

    def lay_pairs_across(x_at: int, across_at: int, examples: int, inputs: int, width: int) -> None:
        x = array(x_at, np.uint32, (examples, inputs // 2))
        across = array(across_at, np.uint32, (inputs, width // 2))
        both = np.empty((LANES, 2 * LANES), np.uint32)
        for i in range(0, inputs // 2, LANES):
            here = min(LANES, inputs // 2 - i)
            for b in range(0, width, 2 * LANES):
                for part in range(0, 2 * LANES, LANES):
                    first = b + part
                    if here == LANES and first + LANES <= examples:
                        tile(x, first, i, both, 0, part)
                    else:
                        for j in range(here):
                            for e in range(LANES):
                                both[j, part + e] = x[first + e, i + j] if first + e < examples else np.uint32(0)
                for j in range(here):
                    for e in range(LANES):
                        one, other = both[j, e], both[j, e + LANES]
                        across[2 * (i + j), b // 2 + e] = (one & low) | (other << half)
                        across[2 * (i + j) + 1, b // 2 + e] = (one >> half) | (other & high)

    return numba.njit(nogil=True)(lay_pairs_across)  # type: ignore[no-any-return]


@cache
def turned_back() -> Callable[..., None]:
    """Compiled: out [B, O] gets the sums [rows, width] of `here` rows from `start` on, transposed."""
    import numba

    tile = transposed_tile()

    def turn_back(sums: Any, out: Any, start: int, here: int) -> None:
        examples = len(out)
        in_tiles, covered = examples - examples % LANES, here - here % LANES
        for b in range(0, in_tiles, LANES):
            for o in range(0, covered, LANES):
                tile(sums, o, b, out, b, start + o)
        for b in range(examples):
            for o in range(covered if b < in_tiles else 0, here):
                out[b, start + o] = sums[o, b]

    return numba.njit(nogil=True)(turn_back)  # type: ignore[no-any-return]


def _row(vectors: int, values_as: torch.dtype, paired: bool) -> Callable[..., None]:
    """Compiled: sums[o] from `count` weights of one row that begin at `begin`."""
    import numba

    bits = values_as == torch.bfloat16
    if paired and bits and fast_dots():
        two = row_of_dots(vectors)
        last = row_of_sums(vectors, from_bits=True, through_table=False, paired=True, onto=True)

        def set_row(values: Any, index: Any, across: Any, sums: Any, o: int, begin: int, count: int) -> None:
            two(values, index, across, sums, o, begin, count // 2)
            last(values, index, index, across, sums, o, 0, begin + count - count % 2, count % 2)
    else:
        every = row_of_sums(vectors, from_bits=bits, through_table=False, paired=paired)

        def set_row(values: Any, index: Any, across: Any, sums: Any, o: int, begin: int, count: int) -> None:
            every(values, index, index, across, sums, o, 0, begin, count)

    return numba.njit(nogil=True, inline="always")(set_row)  # type: ignore[no-any-return]


@cache
def _by_rows(vectors: int, values_as: torch.dtype, index_as: torch.dtype, paired: bool = False) -> Callable[..., None]:
    """The loop for up to `vectors` x 16 examples that lie across, over the rows from `first` to before `last`."""
    import numba
    import numpy as np

    number, column = kinds(values_as, index_as)
    array, turn_back, width = array_at(), turned_back(), vectors * LANES
    word, words = (np.uint32, width // 2) if paired else (np.float32, width)
    set_row = _row(vectors, values_as, paired)

    def by_rows(
        values_at: int, index_at: int, across_at: int, out_at: int, k: int, inputs: int, rows: int, examples: int,
        first: int, last: int,
    ) -> None:  # fmt: skip
        values = array(values_at, number, (rows, k))
        index = array(index_at, column, (rows, k))
        across = array(across_at, word, (inputs, words))
        out = array(out_at, np.float32, (examples, rows))
        sums = np.empty((LANES, width), np.float32)
        for start in range(first, last, LANES):
            here = min(LANES, last - start)
            for o in range(here):
                set_row(values, index, across, sums, o, (start + o) * k, k)
            turn_back(sums, out, start, here)

    return numba.njit(nogil=True)(by_rows)  # type: ignore[no-any-return]
