"""Compiled loops (numba, extra `sparse`) for the two costly parts of drawing masks on a CPU, in fp32.

Gumbel noise from random bits, and the backward pass of the relaxed mask: what `sampling._product_` does in twenty
passes over blocks of rows, in three, with the same scans in fp64.
"""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

LOG2E = np.float32(1 / math.log(2))
# 2^f for |f| <= 1/2, interpolated at Chebyshev points: relative error 2.6e-9 before rounding.
C0, C1, C2, C3, C4, C5, C6 = (
    np.float32(c) for c in (1.0, 0.6931472073, 0.2402265122, 0.0555032719, 0.00961802558, 0.00134004417, 0.000154697402)
)
# (log(1 + f) - f + f^2 / 2) / f^3 for sqrt(1/2) <= 1 + f <= sqrt(2), interpolated likewise.
L0, L1, L2, L3, L4, L5, L6, L7, L8 = (
    np.float32(c)
    for c in (
        0.3333333119, -0.2499998905, 0.2000070748, -0.1666848024, 0.1424993653,
        -0.1241105068, 0.1166151107, -0.1157120073, 0.07149753894,
    )
)  # fmt: skip
ONE, LN2, ROOT_BITS = np.float32(1), np.float32(math.log(2)), np.float32(math.sqrt(0.5)).view(np.int32)
UNIT, SMALLEST, SMALLEST_LEFT = np.float32(2.0**-31), np.float32(2.0**-32), np.float32(2.0**-25)
HALF, LOWEST = np.float32(0.5), np.float32(-87)
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
    find, product = _row_loops()
    # Contiguous, so that numba compiles for one layout only.
    z, own, into = (np.ascontiguousarray(t.detach().numpy()) for t in (perturbed, mask, gradient))
    drawn = np.empty((len(z), int(own[0].sum())), np.int64)
    find(z, own, drawn, by_draw)
    if by_draw:
        drawn.sort(axis=1)
        drawn &= 0xFFFFFFFF
    product(z, own, drawn, into, np.float32(1 / temperature))
    if not gradient.is_contiguous():
        gradient.copy_(torch.from_numpy(into))


def gumbel(bits: np.ndarray) -> np.ndarray:
    """Standard Gumbel noise from random bits: int32 [n], of which 31 bits count, -> fp32 [n]."""
    out = np.empty(len(bits), np.float32)
    _noise_loop()(bits, out)
    return out


def keep_largest(scores: Tensor, limit: np.ndarray, weight: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """Which scores reach the limit of their row, and the weight without the others, in one pass.

    Args:
        scores: fp32 [R, n].
        limit: the k-th largest of every row, fp32 [R].
        weight: fp32 [R, n].
        k: how many there should be.

    Returns:
        bool [R, n] and fp32 [R, n]; None if a row has more than k (equal scores) or fewer (NaN).
    """
    mask, masked = np.empty(scores.shape, np.bool_), np.empty(scores.shape, np.float32)
    exact = _weight_loops()[0](scores.detach().numpy(), limit, weight.detach().numpy(), k, mask, masked)
    return (torch.from_numpy(mask), torch.from_numpy(masked)) if exact else None


def masked_gradients(gradient: Tensor, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of weight * mask by the mask and by the weight, in one pass; all fp32 or bool [R, n]."""
    arrays = [np.ascontiguousarray(t.detach().numpy()) for t in (gradient, weight, mask)]
    by_mask, by_weight = np.empty(gradient.shape, np.float32), np.empty(gradient.shape, np.float32)
    _weight_loops()[1](*arrays, by_mask, by_weight)
    return torch.from_numpy(by_mask), torch.from_numpy(by_weight)


@cache
def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


@cache
def _row_loops() -> Any:
    import numba

    @numba.njit(fastmath=REASSOCIATED, inline="always")  # type: ignore[untyped-decorator]
    def exponential(x: Any) -> Any:
        """exp(x) for x <= 0 to 2e-7 of itself, in operations that processors do on several elements at once."""
        x = max(min(x, np.float32(0)), LOWEST) * LOG2E
        whole = np.int32(x - HALF)
        f = x - np.float32(whole)
        power = np.int32((whole + np.int32(127)) << np.int32(23)).view(np.float32)
        return power * (C0 + f * (C1 + f * (C2 + f * (C3 + f * (C4 + f * (C5 + f * C6))))))

    def find(z: Any, mask: Any, drawn: Any, by_draw: bool) -> None:
        """Columns of the drawn; by draw with the value before them, so that they sort by falling value."""
        k = drawn.shape[1]
        columns = np.empty(k + 1, np.int64)
        for r in range(z.shape[0]):
            row, own = z[r], mask[r]
            found = 0
            for i in range(row.shape[0]):  # without a branch: which are drawn can't be predicted
                columns[found] = i
                found += own[i]
            for t in range(k):
                key = np.int64(0)
                if by_draw:
                    bits = np.float32(row[columns[t]]).view(np.int32)
                    key = ~np.int64(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))) << 32
                drawn[r, t] = key | columns[t]

    def product(z: Any, mask: Any, drawn: Any, g: Any, rate: Any) -> None:
        n, k = z.shape[1], drawn.shape[1]
        at, inverse, a = np.empty(k), np.empty(k), np.empty(k)
        rest = np.empty(n, np.float32)
        for r in range(z.shape[0]):
            row, own, into, index = z[r], mask[r], g[r], drawn[r]
            top, limit = row[index[0]], row[index[0]]
            for t in range(k):
                top, limit = max(top, row[index[t]]), min(limit, row[index[t]])
            left = left_g = np.float32(0)
            # What was not drawn is below what was: relative to the row's largest, fp32 would lose it.
            for i in range(n):
                rest[i] = exponential((row[i] - limit) * rate) * np.float32(not own[i])
                left += rest[i]
                left_g += rest[i] * into[i]
            unit = math.exp(np.float64(limit - top) * rate)
            d, dg = np.float64(left) * unit, np.float64(left_g) * unit
            for t in range(k - 1, -1, -1):
                i = index[t]
                at[t] = math.exp(np.float64(row[i] - top) * rate)
                d += at[t]
                dg += at[t] * into[i]
                inverse[t], a[t] = 1 / d, dg / (d * d)
            sum_a = sum_b = 0.0
            for t in range(k):
                sum_a += inverse[t]
                sum_b += a[t]
                a[t] = (into[index[t]] * sum_a - sum_b) * at[t] * rate
            slope, offset = np.float32(unit * sum_a * rate), np.float32(unit * sum_b * rate)
            for i in range(n):
                into[i] = (into[i] * slope - offset) * rest[i]
            for t in range(k):
                into[index[t]] = a[t]

    return numba.njit(find), numba.njit(fastmath=REASSOCIATED)(product)


@cache
def _weight_loops() -> Any:
    import numba

    def keep_rows(z: Any, limit: Any, weight: Any, k: int, mask: Any, masked: Any) -> bool:
        exact = True
        for r in range(z.shape[0]):
            found = 0
            for i in range(z.shape[1]):
                stays = z[r, i] >= limit[r]
                mask[r, i] = stays
                masked[r, i] = weight[r, i] * np.float32(stays)
                found += stays
            exact &= found == k
        return exact

    def gradient_rows(g: Any, weight: Any, mask: Any, by_mask: Any, by_weight: Any) -> None:
        for r in range(g.shape[0]):
            for i in range(g.shape[1]):
                by_mask[r, i] = g[r, i] * weight[r, i]
                by_weight[r, i] = g[r, i] * np.float32(mask[r, i])

    return numba.njit(keep_rows), numba.njit(gradient_rows)


@cache
def _noise_loop() -> Any:
    import numba

    # No reassociation here: it would take the corrections for rounding for nothing.
    @numba.njit(fastmath={"contract"}, inline="always")  # type: ignore[untyped-decorator]
    def logarithm(x: Any) -> Any:
        """log(x) of a normal number > 0 to 1e-7 of itself, also next to 1."""
        bits = np.float32(x).view(np.int32)
        power = np.int32((bits - ROOT_BITS) >> np.int32(23))
        f = np.int32(bits - (power << np.int32(23))).view(np.float32) - ONE
        high = L4 + f * (L5 + f * (L6 + f * (L7 + f * L8)))
        series = L0 + f * (L1 + f * (L2 + f * (L3 + f * high)))
        return np.float32(power) * LN2 + (f - f * f * (HALF - f * series))

    def noise(bits: Any, out: Any) -> None:
        for i in range(bits.shape[0]):
            u = (np.float32(np.int32(bits[i] & np.int32(0x7FFFFFFF))) + HALF) * UNIT
            w = max(ONE - u, SMALLEST_LEFT)
            # -log(1 - u) to its own precision: what 1 - u lost in rounding comes back.
            e = -(logarithm(w) + ((ONE - w) - u) / w)
            out[i] = -logarithm(max(e, SMALLEST))

    return numba.njit(fastmath={"contract"})(noise)
