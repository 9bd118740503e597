"""Convolution with a condensed weight on a CPU, without copying out patches (numba, extra `sparse`).

The padded input is laid out so that, for a weight at (channel, dy, dx), its inputs for all output positions lie one
after the other: position p reads start[weight] + p. A stride s becomes s x s shifted images of which each is read with
stride 1. Between two lines lie positions of no output; they are computed with the others and left out at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.errors import DataError
from prunus.kernels.products import over_rows, plain
from prunus.kernels.vectors import LANES, MOST_VECTORS, row_of_sums

TILE = LANES * MOST_VECTORS
"""Positions whose sums stay in registers."""


@dataclass(frozen=True)
class Geometry:
    """A convolution on images of one size; pairs are (height, width)."""

    channels: int
    image: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                self.image, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return height, width

    @property
    def shifted(self) -> tuple[int, int]:
        """Height and width of each of the stride x stride shifted images."""
        height, width = (
            -(-(size + 2 * pad) // stride)
            for size, pad, stride in zip(self.image, self.padding, self.stride, strict=True)
        )
        return height, width


def geometry_of(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Geometry:
    """The geometry of a convolution on x [B, Cin, H, W]."""
    return Geometry(x.shape[1], tuple(x.shape[2:]), *map(tuple, (kernel, stride, padding, dilation)))  # type: ignore[arg-type]


def convolved(x: Tensor, values: Tensor, index: Tensor, geometry: Geometry) -> Tensor:
    """The convolution [B, O, H', W'] of fp32 x [B, Cin, H, W], without a gradient.

    Args:
        x: as `geometry` says.
        values: [O, k], fp32 or bf16.
        index: columns of the flattened filters, [O, k], int16 (read as unsigned), int32 or int64.
        geometry: of the convolution.

    Raises:
        DataError: the kernel is larger than the padded image.
    """
    if min(geometry.out) < 1:
        fix = "give larger images, or more padding"
        raise DataError("condensed convolution", f"its kernel does not fit into images {geometry.image}", fix)
    values, index = values.detach().contiguous(), index.contiguous()
    (height, width), line = geometry.out, geometry.shifted[1]
    positions = (height - 1) * line + width
    images = _laid_out(x.detach(), geometry)
    out = x.new_empty(len(x), len(values), height, width)
    sums = x.new_empty(len(values), -(-height * line // LANES) * LANES)
    loop, rest = _by_tiles(values.dtype), -(-(positions % TILE) // LANES)
    given = plain(values), plain(index), _starts(geometry)
    for into, image in zip(out, images, strict=True):
        arrays = *given, image.numpy(), sums.numpy(), positions // TILE, rest
        over_rows(loop, arrays, len(values), index.numel() * positions)
        into.copy_(sums[:, : height * line].view(len(values), height, line)[:, :, :width])
    return out


def _laid_out(x: Tensor, geometry: Geometry) -> Tensor:
    """[B, Cin sh sw H'' W'' + slack]: padded, the shifted images one after the other; the last vector may read on."""
    (top, left), (down, across) = geometry.padding, geometry.stride
    shape = len(x), x.shape[1], down, across, *geometry.shifted
    size = math.prod(shape[1:])
    images = x.new_zeros(len(x), size + TILE)
    shifted = images[:, :size].view(shape)
    for dy in range(down):
        for dx in range(across):
            # The first line and column of x that this image has, and where in it they lie.
            own = x[:, :, (dy - top) % down :: down, (dx - left) % across :: across]
            y, z = -((dy - top) // down), -((dx - left) // across)
            shifted[:, :, dy, dx, y : y + own.shape[2], z : z + own.shape[3]] = own
    return images


@lru_cache(maxsize=256)
def _starts(geometry: Geometry) -> np.ndarray:
    """Where in an image's memory each column of the flattened filters starts: int64 [Cin kh kw]."""
    channel, down, across = np.indices((geometry.channels, *geometry.kernel))
    dy, dx = down * geometry.dilation[0], across * geometry.dilation[1]
    (sh, sw), (height, width) = geometry.stride, geometry.shifted
    shift = (channel * sh + dy % sh) * sw + dx % sw
    return np.ascontiguousarray(((shift * height + dy // sh) * width + dx // sw).reshape(-1))


@cache
def _by_tiles(dtype: torch.dtype) -> Callable[..., None]:
    """The loop over tiles of 64 positions and the rest of them in `rest` vectors, for filters `first` to `last`."""
    import numba

    bits = dtype == torch.bfloat16
    one, two, three, four = (row_of_sums(n, from_bits=bits, through_table=True) for n in (1, 2, 3, 4))

    def by_tiles(
        values: Any, index: Any, starts: Any, image: Any, out: Any, tiles: int, rest: int, first: int, last: int
    ) -> None:
        k = values.shape[1]
        for t in range(tiles):
            for o in range(first, last):
                four(values, index, starts, image, out, o, t * TILE, o * k, k)
        for o in range(first, last):
            if rest == 1:
                one(values, index, starts, image, out, o, tiles * TILE, o * k, k)
            elif rest == 2:
                two(values, index, starts, image, out, o, tiles * TILE, o * k, k)
            elif rest == 3:
                three(values, index, starts, image, out, o, tiles * TILE, o * k, k)
            elif rest == 4:
                four(values, index, starts, image, out, o, tiles * TILE, o * k, k)

    return numba.njit(nogil=True)(by_tiles)  # type: ignore[no-any-return]
