"""The compiled loops (numba, extra `sparse`) for products with a condensed weight on a CPU.

One to three examples are gathered weight by weight. More go through a loop that adds, for each weight, its value times
a row of the transposed input: 16 to 64 examples at once, whose sums stay in vector registers until the row is done. It
is written in LLVM's vectors, which LLVM splits into what the processor has.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

FEW = 3
"""Up to so many examples are gathered one by one, which is faster."""
LANES = 16
"""Examples in a vector."""
MOST_VECTORS = 4
"""Vectors whose sums stay in registers, on AVX2 too (16 registers of 8)."""
CHAINS = 4
"""Sums that don't wait for each other; one alone waits for its last addition at every weight."""
PRODUCTS_FOR_A_THREAD = 4_000_000
"""Multiply-adds below which another thread costs more than it saves."""


def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def looped(x: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """The product [B, O] of fp32 x [B, I] with values [O, k], fp32 or bf16, at index [O, k], without a gradient."""
    x, values, index = x.detach().contiguous(), values.detach().contiguous(), index.contiguous()
    out = x.new_empty(len(x), len(values))
    if len(x) <= FEW:
        _gather(values.dtype)(_plain(values), _plain(index), x.numpy(), out.numpy())
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
    loop = _by_rows(vectors, values.dtype)
    given = _plain(values), _plain(index), across.numpy(), sums.numpy()
    work = index.numel() * vectors * LANES
    threads = max(1, min(torch.get_num_threads(), work // PRODUCTS_FOR_A_THREAD, len(values)))
    if threads == 1:
        loop(*given, 0, len(values))
    else:
        edges = [len(values) * part // threads for part in range(threads + 1)]
        # A pool for each product: one kept would not survive a fork, and this one costs little beside the work.
        with ThreadPoolExecutor(threads) as pool:
            for part in [pool.submit(loop, *given, *between) for between in pairwise(edges)]:
                part.result()
    out.copy_(sums[:, : len(x)].t())


def _plain(tensor: Tensor) -> Any:
    """As numpy: bf16 as its bits, shorts as unsigned (columns beyond 32,767 are what they were)."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy().view("uint16") if tensor.dtype == torch.int16 else tensor.numpy()


@cache
def _gather(dtype: torch.dtype) -> Callable[..., None]:
    """The loop for one example and values of this type."""
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
    """The loop for `vectors` x 16 examples and values of this type, over the rows from `first` to before `last`."""
    import numba

    add_row = _row_of_sums(vectors, dtype == torch.bfloat16)

    def by_rows(values: Any, index: Any, across: Any, out: Any, first: int, last: int) -> None:
        for o in range(first, last):
            add_row(values, index, across, out, o)

    return numba.njit(nogil=True)(by_rows)  # type: ignore[no-any-return]


def _row_of_sums(vectors: int, from_bits: bool) -> Any:
    """out[o] = sum_j values[o, j] across[index[o, j]] as a numba intrinsic; all arrays contiguous."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    number, word, place = ir.FloatType(), ir.IntType(32), ir.IntType(64)
    vector = ir.VectorType(number, LANES)
    same = ir.Constant(ir.VectorType(word, LANES), [0] * LANES)
    fused = ("contract",)
    at_once = max(1, CHAINS // vectors)
    chains = at_once * vectors

    def add_row(typing: Any, values: Any, index: Any, across: Any, out: Any, o: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            views = [context.make_array(t)(context, builder, a)
                     for t, a in zip(signature.args[:4], arguments[:4], strict=True)]  # fmt: skip
            weights, columns, rows, sums = (view.data for view in views)
            count = builder.extract_value(views[0].shape, 1)
            row = builder.sext(arguments[4], place) if arguments[4].type.width < 64 else arguments[4]
            begin = builder.mul(row, count)

            def at(base: Any, row: Any, number_of_vector: int) -> Any:
                start = builder.add(builder.mul(row, place(vectors * LANES)), place(number_of_vector * LANES))
                return builder.bitcast(builder.gep(base, [start]), vector.as_pointer())

            totals = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LANES)) for _ in range(chains)]
            for total in totals:
                builder.store(ir.Constant(vector, [0.0] * LANES), total)

            def add(here: Any, chain: int) -> None:
                value = builder.load(builder.gep(weights, [here]))
                if from_bits:
                    value = builder.bitcast(builder.shl(builder.zext(value, word), word(16)), number)
                column = builder.load(builder.gep(columns, [here]))
                column = builder.zext(column, place) if column.type.width < 64 else column
                first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, word(0))
                spread = builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), same)
                for i in range(vectors):
                    many = builder.load(at(rows, column, i))
                    many.align = 4
                    total = totals[chain * vectors + i]
                    product = builder.fmul(spread, many, flags=fused)
                    builder.store(builder.fadd(builder.load(total), product, flags=fused), total)

            whole = builder.udiv(count, place(at_once))
            with cgutils.for_range(builder, whole, intp=place) as loop:
                for chain in range(at_once):
                    add(builder.add(begin, builder.add(builder.mul(loop.index, place(at_once)), place(chain))), chain)
            with cgutils.for_range(builder, count, start=builder.mul(whole, place(at_once)), intp=place) as loop:
                add(builder.add(begin, loop.index), 0)
            for i in range(vectors):
                parts = [builder.load(total) for total in totals[i::vectors]]
                builder.store(reduce(builder.fadd, parts), at(sums, row, i)).align = 4
            return context.get_dummy_value()

        return types.void(values, index, across, out, o), code

    return intrinsic(add_row)
