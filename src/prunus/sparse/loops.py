"""The compiled loops (numba, extra `sparse`) for products with a condensed weight on a CPU.

One to three examples are gathered weight by weight. More go through a loop that adds, for each weight, its value times
a row of the transposed input: 16 to 64 examples at once, whose sums stay in vector registers until the row is done. It
is written in LLVM's vectors, which LLVM splits into what the processor has.
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

from prunus.sparse.vectors import LANES, MOST_VECTORS, row_of_sums

FEW = 3
"""Up to so many examples are gathered one by one, which is faster."""
PRODUCTS_FOR_A_THREAD = 4_000_000
"""Multiply-adds below which another thread costs more than it saves."""


@cache
def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def looped(x: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """The product [B, O] of fp32 x [B, I] with values [O, k], fp32 or bf16, at index [O, k], without a gradient."""
    x, values, index = x.detach().contiguous(), values.detach().contiguous(), index.contiguous()
    out = x.new_empty(len(x), len(values))
    if len(x) <= FEW:
        _gather(values.dtype)(plain(values), plain(index), x.numpy(), out.numpy())
        return out
    wide = LANES * MOST_VECTORS
    for start in range(0, len(x), wide):
        _across(x[start : start + wide], values, index, out[start : start + wide])
    return out


def _across(x: Tensor, values: Tensor, index: Tensor, out: Tensor) -> None:
    """`looped` for at most as many examples as fit into the registers."""
    vectors = -(-len(x) // LANES)
    across, sums = x.new_empty(x.shape[1], vectors * LANES), x.new_empty(len(values), vectors * LANES)
    across[:, : len(x)], across[:, len(x) :] = x.t(), 0
    given = plain(values), plain(index), across.numpy(), sums.numpy()
    over_rows(_by_rows(vectors, values.dtype), given, len(values), index.numel() * vectors * LANES)
    out.copy_(sums[:, : len(x)].t())


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
def _gather(dtype: torch.dtype) -> Callable[..., None]:
    """The loop for a few examples, one after the other, and values of this type."""
    import numba
    import numpy as np

    compiled = numba.njit(fastmath=True, nogil=True)
    if dtype == torch.bfloat16:
        widened = compiled(lambda value: np.int32(np.uint32(value) << np.uint32(16)).view(np.float32))
    else:
        widened = compiled(lambda value: value)

    def gather(values: Any, index: Any, x: Any, out: Any) -> None:
        for b in range(x.shape[0]):
            row = x[b]
            for o in range(values.shape[0]):
                total = np.float32(0)
                for j in range(values.shape[1]):
                    total += widened(values[o, j]) * row[index[o, j]]
                out[b, o] = total

    return compiled(gather)  # type: ignore[no-any-return]


@cache
def _by_rows(vectors: int, dtype: torch.dtype) -> Callable[..., None]:
    """The loop for `vectors` x 16 columns and values of this type, over the rows from `first` to before `last`."""
    import numba

    add_row = row_of_sums(vectors, from_bits=dtype == torch.bfloat16, through_table=False)

    def by_rows(values: Any, index: Any, across: Any, out: Any, first: int, last: int) -> None:
        for o in range(first, last):
            add_row(values, index, index, across, out, o, 0)

    return numba.njit(nogil=True)(by_rows)  # type: ignore[no-any-return]
