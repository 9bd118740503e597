"""Condensed weights packed by blocks of columns, for many examples on a CPU (numba, extra `sparse`).

A row's weights read inputs from all over the transposed examples, which are larger than the first cache: what limits
the plain loop is the second one. Here 128 rows at a time go through the columns block by block, and a block's inputs
stay in the first cache. For that the weights lie in the order in which they are used: by 128 rows, in these by block of
columns, in these by row. They are a second copy, made at the first use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from prunus.kernels.addresses import array_at
from prunus.kernels.products import kinds, lay_across, looped, over_rows, turned_back
from prunus.kernels.vectors import LANES, MOST_VECTORS, row_of_sums

ROWS = 128
"""Rows whose sums wait for the next block of columns."""
EXAMPLES = LANES * MOST_VECTORS
"""Examples that a pass takes."""
BLOCK = 128
"""Columns whose inputs, of 64 examples, take 32 KiB: a first cache."""
WORTH = 12
"""Weights in a row's part of a block that repay loading and storing its sums."""


@dataclass(frozen=True)
class Packed:
    """A copy of a condensed weight in the order of use.

    Attributes:
        values: [O k].
        index: [O k], int16 (read as unsigned), int32 or int64.
        counts: how many of a row's weights lie in a block, int16 [ceil(O / 128), blocks, 128].
        sources: the values and the index that it was made of, sharing their memory.
        versions: of the sources at that time.
    """

    values: Tensor
    index: Tensor
    counts: Tensor
    sources: tuple[Tensor, Tensor]
    versions: tuple[int, int]

    def of(self, *sources: Tensor) -> bool:
        """Whether it is still a copy of these values and this index: the same memory, not written to since."""
        return all(
            s.data_ptr() == own.data_ptr() and s.dtype == own.dtype and s._version == version
            for s, own, version in zip(sources, self.sources, self.versions, strict=True)
        )


def block_for(examples: int, values: Tensor, index: Tensor, inputs: int) -> int | None:
    """Columns in a block with which packing pays for so many fp32 examples, or None."""
    if examples <= EXAMPLES // 2 or inputs <= 2 * BLOCK:
        return None
    if values.is_inference() or index.is_inference():  # they have no version that would tell of changes
        return None
    k = values.shape[1]
    return next((columns for columns in (BLOCK, 2 * BLOCK, 4 * BLOCK) if k * columns >= WORTH * inputs), None)


def pack(values: Tensor, index: Tensor, inputs: int, columns: int) -> Packed:
    """Pack values [O, k] at ascending columns index [O, k] below `inputs`."""
    sources, (rows, k) = (values.detach(), index), values.shape
    blocks, tiles = -(-inputs // columns), -(-rows // ROWS)
    values, index = sources[0].contiguous(), index.contiguous()
    made = torch.empty_like(values).view(-1), torch.empty_like(index).view(-1)
    counts = torch.zeros(tiles, blocks, ROWS, dtype=torch.int16, device=values.device)
    given = (t.data_ptr() for t in (values, index, *made, counts))
    _pack(values.dtype, index.dtype)(*given, k, rows, columns, blocks)
    return Packed(*made, counts, sources, (sources[0]._version, sources[1]._version))


def packed_product(x: Tensor, values: Tensor, index: Tensor, packed: Packed) -> Tensor:
    """`loops.looped` for fp32 x [B, I], with the weight packed; values and index serve the last few examples."""
    x = x.contiguous()
    (examples, inputs), (rows, k) = x.shape, values.shape
    out, across = x.new_empty(examples, rows), x.new_empty(inputs, EXAMPLES)
    tiles, blocks, _ = packed.counts.shape
    for start in range(0, examples, EXAMPLES):
        part = min(EXAMPLES, examples - start)
        if part <= EXAMPLES // 2:
            out[start:] = looped(x[start:], values, index)
            break
        vectors = -(-part // LANES)
        lay_across()(x[start].data_ptr(), across.data_ptr(), part, inputs, vectors * LANES)
        arrays = packed.values, packed.index, packed.counts, across, out[start]
        given = *(t.data_ptr() for t in arrays), k, inputs, rows, part, blocks
        loop = _by_blocks(vectors, packed.values.dtype, packed.index.dtype)
        over_rows(loop, given, tiles, rows * k * vectors * LANES)
    return out


@cache
def _pack(values_as: torch.dtype, index_as: torch.dtype) -> Callable[..., None]:
    """Compiled: write values, columns and counts in the order of use; arrays by their addresses."""
    import numba
    import numpy as np

    (number, column), array = kinds(values_as, index_as), array_at()

    def fill(
        values_at: int, index_at: int, to_values_at: int, to_index_at: int, counts_at: int,
        k: int, rows: int, columns: int, blocks: int,
    ) -> None:  # fmt: skip
        values, index = array(values_at, number, (rows, k)), array(index_at, column, (rows, k))
        to_values, to_index = array(to_values_at, number, (rows * k,)), array(to_index_at, column, (rows * k,))
        counts = array(counts_at, np.int16, (-(-rows // ROWS), blocks, ROWS))
        at = 0
        for tile in range(-(-rows // ROWS)):
            reached = np.zeros(ROWS, np.int64)
            here = min(ROWS, rows - tile * ROWS)
            for block in range(blocks):
                for o in range(here):
                    row, first = tile * ROWS + o, reached[o]
                    j = first
                    while j < k and index[row, j] < (block + 1) * columns:
                        to_values[at], to_index[at] = values[row, j], index[row, j]
                        at, j = at + 1, j + 1
                    counts[tile, block, o], reached[o] = j - first, j

    return numba.njit(nogil=True)(fill)  # type: ignore[no-any-return]


@cache
def _by_blocks(vectors: int, values_as: torch.dtype, index_as: torch.dtype) -> Callable[..., None]:
    """The loop for up to `vectors` x 16 examples that lie across, over the tiles from `first` to before `last`."""
    import numba
    import numpy as np

    number, column = kinds(values_as, index_as)
    add = row_of_sums(vectors, from_bits=values_as == torch.bfloat16, through_table=False, onto=True)
    array, turn_back, width = array_at(), turned_back(), vectors * LANES

    def by_blocks(
        values_at: int, index_at: int, counts_at: int, across_at: int, out_at: int, k: int, inputs: int, rows: int,
        examples: int, blocks: int, first: int, last: int,
    ) -> None:  # fmt: skip
        values, index = array(values_at, number, (rows * k,)), array(index_at, column, (rows * k,))
        counts = array(counts_at, np.int16, (-(-rows // ROWS), blocks, ROWS))
        across, out = array(across_at, np.float32, (inputs, width)), array(out_at, np.float32, (examples, rows))
        memory = np.empty((ROWS + 1) * width, np.float32)
        sums = array(memory.ctypes.data + -memory.ctypes.data % 64, np.float32, (ROWS, width))
        for t in range(first, last):
            start, here = t * ROWS, min(ROWS, rows - t * ROWS)
            at = start * k
            sums[:] = 0
            for block in range(blocks):
                for o in range(here):
                    add(values, index, index, across, sums, o, 0, at, counts[t, block, o])
                    at += counts[t, block, o]
            turn_back(sums, out, start, here)
        memory[0] = 0  # numba frees an array after its last use, and knows nothing of this one's by its address

    return numba.njit(nogil=True)(by_blocks)  # type: ignore[no-any-return]
