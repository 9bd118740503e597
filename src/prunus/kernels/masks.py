"""Compiled loops (numba, extra `sparse`) for drawing masks on a CPU, in fp32.

The backward pass of the relaxed mask: what `sampling._product_` does in twenty passes over blocks of rows, in three,
with the same scans in fp64. Where the choices are the weight's own memory, a draw is one pass over the rows and its
gradients another; a row stays in the cache meanwhile.
"""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.kernels.addresses import array_at
from prunus.kernels.draws import list_rows, room, strike_rows, value_key
from prunus.kernels.noise import HALF, ONE, gumbel_loops, key_of, wide_vectors

LOG2E_64 = 1 / math.log(2)
LOG2E = np.float32(LOG2E_64)
# 2^f for |f| <= 1/2, interpolated at Chebyshev points: relative error 2.6e-9 before rounding.
C0, C1, C2, C3, C4, C5, C6 = (
    np.float32(c) for c in (1.0, 0.6931472073, 0.2402265122, 0.0555032719, 0.00961802558, 0.00134004417, 0.000154697402)
)
LOWEST, LOWEST_64 = np.float32(-87), -700.0
SAFE_SPREAD = 300.0
"""Largest spread of z for which sums of exp(z), and their squares, are taken in fp64 without logarithms."""
REASSOCIATED = {"reassoc", "contract", "nsz", "arcp"}
"""What the compiler may do to sums, so that it takes several elements at a time; infinities and NaN stay themselves."""


def product_(perturbed: Tensor, mask: Tensor, gradient: Tensor, temperature: float, *, by_draw: bool) -> None:
    """Overwrite `gradient` [R, n] by its product with the Jacobian of the relaxed mask.

    Args:
        perturbed: logits + c noise, fp32 [R, n].
        mask: its k largest, bool [R, n].
        gradient: of a loss by the mask, fp32 [R, n].
        temperature: T.
        by_draw: the drawn leave by falling value, not by index.
    """
    # Contiguous, so that numba compiles for one layout only.
    z, own, into = (np.ascontiguousarray(t.detach().numpy()) for t in (perturbed, mask, gradient))
    drawn = np.empty((len(z), int(own[0].sum())), np.int64)
    search, product = _product_loops()
    search(z, own, drawn, by_draw)
    product(z, _in_turn(drawn, by_draw), into, np.float32(1 / temperature))
    if not gradient.is_contiguous():
        gradient.copy_(torch.from_numpy(into))


def gumbel(rows: int, n: int, seed: tuple[int, ...]) -> np.ndarray:
    """Standard Gumbel noise of the bits that `random_bits` makes: fp32 [rows, n]."""
    out = np.empty((rows, n), np.float32)
    gumbel_loops()[1](key_of(seed), out)
    return out


def draw(
    logits: Tensor, weight: Tensor, seed: tuple[int, ...], noise_scale: float, k: int, *, by_draw: bool | None,
    with_mask: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor] | None:  # fmt: skip
    """Perturb the logits, find the k largest of every row and mask the weight with them, in one pass.

    Args:
        logits: fp32 [R, n], contiguous.
        weight: fp32, contiguous, of any shape with R rows of n numbers.
        seed: of the noise, as `gumbel` takes it.
        noise_scale: factor of the noise.
        k: 1 <= k < n.
        by_draw: list the drawn by falling value, or by column; None if nobody asks.
        with_mask: whether the mask itself is wanted.

    Returns:
        logits + noise_scale * noise, fp32 [R, n]; its k largest, bool [R, n], or None; the masked weight, of the
        weight's shape; columns of the drawn, int32 [R, k] or [R, 0]. None if in some row nothing parts k and a few from
        the others (many equal values, NaN).
    """
    # By their addresses: numba unpacks every field of an array at each call, as long as a small layer's loop takes.
    (rows, n), most, wanted = logits.shape, room(k, logits.shape[1]), 0 if by_draw is None else k
    z, masked = torch.empty_like(logits), torch.empty_like(weight)
    mask = torch.empty(rows if with_mask else 0, n, dtype=torch.bool, device=logits.device)
    listed, drawn = np.empty((rows, most), np.int64), torch.empty(rows, wanted, dtype=torch.int32, device="cpu")
    list_at, mask_at = listed.__array_interface__["data"][0], mask.data_ptr()
    at = logits.data_ptr(), weight.data_ptr(), z.data_ptr(), masked.data_ptr(), mask_at, list_at
    if not list_rows()(*at, rows, n, len(mask), most, k, key_of(seed), np.float32(noise_scale)):
        return None
    listed.sort(axis=1)
    strike_rows()(list_at, drawn.data_ptr(), masked.data_ptr(), mask_at, rows, n, len(mask), most, k, wanted)
    return z, mask if with_mask else None, masked, drawn if by_draw is not False else drawn.sort(1).values


def gradients(
    perturbed: Tensor, drawn: Tensor, weight: Tensor, gradient: Tensor, temperature: float
) -> tuple[Tensor, Tensor] | None:
    """Gradients by the logits and by the weight of a loss that has `gradient` by the masked weight, in one pass.

    Args:
        perturbed: logits + c noise, fp32 [R, n].
        drawn: columns of its k largest in the order in which they leave, int32 [R, k].
        weight: fp32, of any shape with R rows of n numbers.
        gradient: fp32, of the weight's shape; all are contiguous.
        temperature: T of the relaxation.

    Returns:
        fp32 [R, n], and fp32 of the weight's shape; None if the drawn of a row spread too far for sums of exponentials
        without logarithms.
    """
    by_logits, by_weight = torch.empty_like(perturbed), torch.empty_like(weight)
    at = [t.data_ptr() for t in (perturbed, drawn, weight, gradient, by_logits, by_weight)]
    safe = _gradient_loop()(*at, *perturbed.shape, drawn.shape[1], np.float32(1 / temperature))
    return (by_logits, by_weight) if safe else None


@cache
def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def _in_turn(drawn: np.ndarray, by_draw: bool) -> np.ndarray:
    """Columns of the drawn in the order in which they leave, int32 [R, k], from what `search` made."""
    if by_draw:
        drawn.sort(axis=1)
    return drawn.astype(np.int32)  # cuts off what lies above the column


@cache
def _row_product() -> Any:
    """The product with the Jacobian in one row, in pieces of which both loops below consist.

    Returns:
        `ends`, the values drawn; `others` and `others_and_gradients`, exp(z) of what was not drawn, relative to the
        smallest drawn (relative to the largest fp32 would lose it), with its sum and that of its products with the
        gradient; `product`, the rest. `others_and_gradients` masks and multiplies in the same pass, and also tells
        how many reach the smallest drawn: if more than were drawn, what it found is not right.
    """
    import numba

    wide = wide_vectors()

    @numba.njit(fastmath=REASSOCIATED, inline="always")  # type: ignore[untyped-decorator]
    def interpolated(f: Any) -> Any:
        return C0 + f * (C1 + f * (C2 + f * (C3 + f * (C4 + f * (C5 + f * C6)))))

    @numba.njit(fastmath=REASSOCIATED, inline="always")  # type: ignore[untyped-decorator]
    def exponential(x: Any) -> Any:
        """exp(x) for x <= 0 to 2e-7 of itself, in operations that processors do on several elements at once."""
        x = max(min(x, np.float32(0)), LOWEST) * LOG2E
        whole = np.int32(x - HALF)
        power = np.int32((whole + np.int32(127)) << np.int32(23)).view(np.float32)
        return power * interpolated(x - np.float32(whole))

    @numba.njit(fastmath=REASSOCIATED, inline="always")  # type: ignore[untyped-decorator]
    def far_exponential(x: Any) -> Any:
        """The same in fp64 down to exp(-700): the drawn may lie further apart than fp32 reaches."""
        x = max(min(x, 0.0), LOWEST_64) * LOG2E_64
        whole = np.int64(x - 0.5)
        power = np.int64((whole + np.int64(1023)) << np.int64(52)).view(np.float64)
        return power * np.float64(interpolated(np.float32(x - np.float64(whole))))

    @numba.njit(fastmath=REASSOCIATED)  # type: ignore[untyped-decorator]
    def ends(row: Any, index: Any, at: Any) -> Any:
        """The drawn values to `at`; the largest and the smallest."""
        top = limit = row[index[0]]
        for t in range(len(index)):
            value = row[np.uint32(index[t])]  # unsigned: else numba asks every time whether it counts from the end
            at[t] = value
            top, limit = max(top, value), min(limit, value)
        return top, limit

    @numba.njit(fastmath=REASSOCIATED)  # type: ignore[untyped-decorator]
    def product(
        row: Any, index: Any, into: Any, rate: Any, rest: Any, at: Any, own: Any, inverse: Any, a: Any,
        top: Any, limit: Any, left: Any, left_g: Any,
    ) -> bool:  # fmt: skip
        wide()
        n, k = len(row), len(index)
        for t in range(k):
            own[t] = into[np.uint32(index[t])]
        unit = math.exp(np.float64(limit - top) * rate)
        for t in range(k):
            at[t] = far_exponential((at[t] - top) * rate)
        d, dg = np.float64(left) * unit, np.float64(left_g) * unit
        for t in range(k - 1, -1, -1):
            d += at[t]
            dg += at[t] * own[t]
            inverse[t] = d
            a[t] = dg
        for t in range(k):
            inverse[t] = 1 / inverse[t]
            a[t] *= inverse[t] * inverse[t]
        sum_a = sum_b = 0.0
        for t in range(k):
            sum_a += inverse[t]
            sum_b += a[t]
            a[t] = (own[t] * sum_a - sum_b) * at[t] * rate
        slope, offset = np.float32(unit * sum_a * rate), np.float32(unit * sum_b * rate)
        for i in range(n):
            into[i] = (into[i] * slope - offset) * rest[i]
        for t in range(k):
            into[np.uint32(index[t])] = a[t]
        return not (top - limit) * rate > SAFE_SPREAD

    @numba.njit(fastmath=REASSOCIATED)  # type: ignore[untyped-decorator]
    def others(row: Any, index: Any, limit: Any, rate: Any, into: Any, rest: Any) -> Any:
        wide()
        left = left_g = np.float32(0)
        for i in range(len(row)):
            rest[i] = exponential((row[i] - limit) * rate)
        for t in range(len(index)):
            rest[np.uint32(index[t])] = 0
        for i in range(len(row)):
            left += rest[i]
            left_g += rest[i] * into[i]
        return left, left_g

    @numba.njit(fastmath=REASSOCIATED)  # type: ignore[untyped-decorator]
    def others_and_gradients(
        row: Any, limit: Any, rate: Any, g: Any, weight: Any, into: Any, by_weight: Any, rest: Any
    ) -> Any:
        wide()
        left = left_g = reach = np.float32(0)
        for i in range(len(row)):
            below = row[i] < limit
            reach += np.float32(0) if below else ONE
            into[i] = g[i] * weight[i]
            by_weight[i] = np.float32(0) if below else g[i]
            rest[i] = exponential((row[i] - limit) * rate) if below else np.float32(0)
            left += rest[i]
            left_g += rest[i] * into[i]
        return left, left_g, reach

    return ends, others, others_and_gradients, product


@cache
def _product_loops() -> Any:
    import numba

    (ends, others, _, row_product), key_of_value = _row_product(), value_key()

    def search(z: Any, mask: Any, drawn: Any, by_draw: bool) -> None:
        """Columns of the drawn; by draw below the values' keys, so that they sort by falling value."""
        columns = np.empty(drawn.shape[1] + 1, np.int32)
        for r in range(z.shape[0]):
            found = np.uint32(0)
            for i in range(z.shape[1]):  # without a branch: which are drawn can't be predicted
                columns[found] = i
                found += np.uint32(mask[r, i])
            for t in range(drawn.shape[1]):
                column = np.uint32(columns[t])
                drawn[r, t] = key_of_value(z[r, column], np.int64(column)) if by_draw else np.int64(column)

    def product(z: Any, drawn: Any, g: Any, rate: Any) -> None:
        n, k = z.shape[1], drawn.shape[1]
        rest = np.empty(n, np.float32)
        at, own, inverse, a = np.empty(k), np.empty(k), np.empty(k), np.empty(k)
        for r in range(z.shape[0]):
            row, index, into = z[r], drawn[r], g[r]
            top, limit = ends(row, index, at)
            left, left_g = others(row, index, limit, rate, into, rest)
            row_product(row, index, into, rate, rest, at, own, inverse, a, top, limit, left, left_g)

    return numba.njit(search), numba.njit(product)


@cache
def _gradient_loop() -> Any:
    import numba

    (ends, others, others_and_gradients, product), array = _row_product(), array_at()

    def gradient_rows(
        z_at: int, drawn_at: int, weight_at: int, g_at: int, by_logits_at: int, by_weight_at: int,
        rows: int, n: int, k: int, rate: Any,
    ) -> bool:  # fmt: skip
        z, drawn = array(z_at, np.float32, (rows, n)), array(drawn_at, np.int32, (rows, k))
        weight, g = array(weight_at, np.float32, (rows, n)), array(g_at, np.float32, (rows, n))
        by_logits, by_weight = array(by_logits_at, np.float32, (rows, n)), array(by_weight_at, np.float32, (rows, n))
        rest = np.empty(n, np.float32)
        at, own, inverse, a = np.empty(k), np.empty(k), np.empty(k), np.empty(k)
        safe = True
        for r in range(rows):
            row, index, into = z[r], drawn[r], by_logits[r]
            top, limit = ends(row, index, at)
            left, left_g, reach = others_and_gradients(row, limit, rate, g[r], weight[r], into, by_weight[r], rest)
            if reach > k:
                left, left_g = others(row, index, limit, rate, into, rest)
                by_weight[r] = 0
                for t in range(k):
                    column = np.uint32(index[t])
                    by_weight[r, column] = g[r, column]
            safe &= product(row, index, into, rate, rest, at, own, inverse, a, top, limit, left, left_g)
        return safe

    return numba.njit(gradient_rows)
