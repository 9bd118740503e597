"""Compiled loops (numba, extra `sparse`) for drawing masks on a CPU, in fp32.

The backward pass of the relaxed mask: what `sampling._product_` does in twenty passes over blocks of rows, in three,
with the same scans in fp64. Where the choices are the weight's own memory, a draw and its gradients are one pass over
the rows each; a row stays in the cache meanwhile.
"""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.masks.noise_loops import (
    HALF,
    ONE,
    gumbel_loops,
    gumbel_of_bits,
    key_of,
    row_of_bits,
    wide_vectors,
)

LOG2E_64 = 1 / math.log(2)
LOG2E = np.float32(LOG2E_64)
# 2^f for |f| <= 1/2, interpolated at Chebyshev points: relative error 2.6e-9 before rounding.
C0, C1, C2, C3, C4, C5, C6 = (
    np.float32(c) for c in (1.0, 0.6931472073, 0.2402265122, 0.0555032719, 0.00961802558, 0.00134004417, 0.000154697402)
)
LOWEST, LOWEST_64 = np.float32(-87), -700.0
SAFE_SPREAD = 300.0
"""Largest spread of z for which sums of exp(z), and their squares, are taken in fp64 without logarithms."""
MOST_PASSES = 64
"""Counts of a row after which the search for a number that parts k from the others ends."""
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
    logits: Tensor, weight: Tensor, seed: tuple[int, ...], noise_scale: float, k: int, by_draw: bool | None
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Perturb the logits, find the k largest of every row and mask the weight with them, all in one pass.

    Args:
        logits: fp32 [R, n].
        weight: fp32 [R, n].
        seed: of the noise, as `gumbel` takes it.
        noise_scale: factor of the noise.
        k: 1 <= k < n.
        by_draw: list the drawn by falling value, or by column; None if nobody asks.

    Returns:
        logits + noise_scale * noise, fp32 [R, n]; its k largest, bool [R, n]; the masked weight, fp32 [R, n]; columns
        of the drawn, int32 [R, k] or [R, 0]. None if in some row no number parts k from the others (equal values, NaN).
    """
    shape = tuple(logits.shape)
    z, mask, masked = np.empty(shape, np.float32), np.empty(shape, np.bool_), np.empty(shape, np.float32)
    drawn = np.empty((len(logits), 0 if by_draw is None else k), np.int64)
    given = logits.detach().numpy(), weight.detach().numpy(), key_of(seed)
    if not _draw_loop()(*given, np.float32(noise_scale), k, z, mask, masked, drawn, bool(by_draw)):
        return None
    columns = torch.from_numpy(_in_turn(drawn, bool(by_draw)))
    return torch.from_numpy(z), torch.from_numpy(mask), torch.from_numpy(masked), columns


def gradients(
    perturbed: Tensor, drawn: Tensor, weight: Tensor, gradient: Tensor, temperature: float
) -> tuple[Tensor, Tensor] | None:
    """Gradients by the logits and by the weight of a loss that has `gradient` by the masked weight, in one pass.

    Args:
        perturbed: logits + c noise, fp32 [R, n].
        drawn: columns of its k largest in the order in which they leave, int32 [R, k].
        weight: fp32 [R, n].
        gradient: fp32 [R, n].
        temperature: T of the relaxation.

    Returns:
        Both fp32 [R, n]; None if the drawn of a row spread too far for sums of exponentials without logarithms.
    """
    arrays = [np.ascontiguousarray(t.detach().numpy()) for t in (perturbed, drawn, weight, gradient)]
    by_logits, by_weight = np.empty(gradient.shape, np.float32), np.empty(gradient.shape, np.float32)
    if not _gradient_loop()(*arrays, np.float32(1 / temperature), by_logits, by_weight):
        return None
    return torch.from_numpy(by_logits), torch.from_numpy(by_weight)


@cache
def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def _in_turn(drawn: np.ndarray, by_draw: bool) -> np.ndarray:
    """Columns of the drawn in the order in which they leave, int32 [R, k], from what `_row_search` made."""
    if by_draw:
        drawn.sort(axis=1)
    return drawn.astype(np.int32)  # cuts off what lies above the column


@cache
def _row_search() -> Any:
    import numba

    def search(z: Any, mask: Any, columns: Any, drawn: Any, by_draw: bool) -> None:
        """Columns of a row's drawn; by draw with the value before them, so that they sort by falling value."""
        found = np.uint64(0)
        for i in range(len(z)):  # without a branch: which are drawn can't be predicted
            columns[found] = i
            found += np.uint64(mask[i])
        for t in range(len(drawn)):
            key = np.int64(0)
            if by_draw:
                bits = np.float32(z[np.uint64(columns[t])]).view(np.int32)
                key = ~np.int64(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))) << 32
            drawn[t] = key | columns[t]

    return numba.njit(search)


@cache
def _row_product() -> Any:
    """The product with the Jacobian in one row, of which both loops below consist."""
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

    def product(
        row: Any, index: Any, into: Any, rate: Any, rest: Any, at: Any, own: Any, inverse: Any, a: Any
    ) -> bool:  # fmt: skip
        wide()
        n, k = len(row), len(index)
        top = limit = row[index[0]]
        for t in range(k):
            value = row[np.uint32(index[t])]  # unsigned: else numba asks every time whether it counts from the end
            at[t], own[t] = value, into[np.uint32(index[t])]
            top, limit = max(top, value), min(limit, value)
        left = left_g = np.float32(0)
        # What was not drawn is below what was: relative to the row's largest, fp32 would lose it.
        for i in range(n):
            rest[i] = exponential((row[i] - limit) * rate)
        for t in range(k):
            rest[np.uint32(index[t])] = 0
        for i in range(n):
            left += rest[i]
            left_g += rest[i] * into[i]
        unit = math.exp(np.float64(limit - top) * rate)
        for t in range(k):
            at[t] = far_exponential((at[t] - top) * rate)
        d, dg = np.float64(left) * unit, np.float64(left_g) * unit
        for t in range(k - 1, -1, -1):
            d += at[t]
            dg += at[t] * own[t]
            inverse[t] = 1 / d
            a[t] = dg * inverse[t] * inverse[t]
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

    return numba.njit(fastmath=REASSOCIATED)(product)


@cache
def _product_loops() -> Any:
    import numba

    row_search, row_product = _row_search(), _row_product()

    def search(z: Any, mask: Any, drawn: Any, by_draw: bool) -> None:
        columns = np.empty(drawn.shape[1] + 1, np.int64)
        for r in range(z.shape[0]):
            row_search(z[r], mask[r], columns, drawn[r], by_draw)

    def product(z: Any, drawn: Any, g: Any, rate: Any) -> None:
        n, k = z.shape[1], drawn.shape[1]
        rest = np.empty(n, np.float32)
        at, own, inverse, a = np.empty(k), np.empty(k), np.empty(k), np.empty(k)
        for r in range(z.shape[0]):
            row_product(z[r], drawn[r], g[r], rate, rest, at, own, inverse, a)

    return numba.njit(search), numba.njit(product)


@cache
def _gradient_loop() -> Any:
    import numba

    row_product, wide = _row_product(), wide_vectors()

    def gradient_rows(z: Any, drawn: Any, weight: Any, g: Any, rate: Any, by_logits: Any, by_weight: Any) -> bool:
        wide()
        n, k = z.shape[1], drawn.shape[1]
        rest = np.empty(n, np.float32)
        at, own, inverse, a = np.empty(k), np.empty(k), np.empty(k), np.empty(k)
        safe = True
        for r in range(z.shape[0]):
            for i in range(n):
                by_logits[r, i] = g[r, i] * weight[r, i]
            by_weight[r] = 0
            for t in range(k):
                column = np.uint32(drawn[r, t])
                by_weight[r, column] = g[r, column]
            safe &= row_product(z[r], drawn[r], by_logits[r], rate, rest, at, own, inverse, a)
        return safe

    return numba.njit(gradient_rows)


@cache
def _draw_loop() -> Any:
    import numba

    noise, row_bits, row_search, wide = gumbel_of_bits(), row_of_bits(), _row_search(), wide_vectors()

    @numba.njit(fastmath={"contract"})  # type: ignore[untyped-decorator]
    def perturb(logits: Any, bits: Any, scale: Any, z: Any) -> None:
        wide()
        for i in range(z.shape[0]):
            z[i] = logits[i] + scale * noise(bits[i])

    @numba.njit(fastmath=REASSOCIATED)  # type: ignore[untyped-decorator]
    def reaching(row: Any, limit: Any) -> Any:
        wide()
        found = np.float32(0)  # counts in fp32 are exact to 2^24, and added several at a time
        for i in range(row.shape[0]):
            found += ONE if row[i] >= limit else np.float32(0)
        return found

    @numba.njit  # type: ignore[untyped-decorator]
    def parting(row: Any, k: Any, guess: Any, scale: Any) -> Any:
        """A number that exactly k of the row reach, NaN if none was found; few passes where rows are alike."""
        low, high, limit = np.float32(-np.inf), np.float32(np.inf), guess
        at_low, at_high = np.float32(len(row)), np.float32(0)
        for step in range(MOST_PASSES):
            found = reaching(row, limit)
            if found == k:
                return limit
            if found > k:
                low, at_low = limit, found
            else:
                high, at_high = limit, found
            if low == -np.inf or high == np.inf:
                # The tail of Gumbel noise falls like exp(-x / scale); wider steps later, for logits that spread.
                far = np.float32(math.log(max(found, HALF) / k) * 2.0 ** max(0, step - 4))
                limit += scale * far
            else:
                share = (at_low - k) / (at_low - at_high) if step % 3 else HALF
                limit = low + (high - low) * np.float32(share)
                if not low < limit < high:
                    break
        return np.float32(np.nan)

    def draw(
        logits: Any, weight: Any, key: Any, scale: Any, k: Any,
        z: Any, mask: Any, masked: Any, drawn: Any, by_draw: bool,
    ) -> bool:  # fmt: skip
        wide()
        n, guess, step = z.shape[1], np.float32(0), max(scale, np.float32(1e-3))
        columns, bits = np.empty(k + 1, np.int64), np.empty(2 * ((n + 1) // 2), np.int32)
        for r in range(z.shape[0]):
            row_bits(key, r, bits)
            perturb(logits[r], bits, scale, z[r])
            if reaching(z[r], np.float32(-np.inf)) != n:  # NaN reach nothing
                return False
            limit = parting(z[r], k, guess, step)
            if np.isnan(limit):
                return False
            guess = limit
            for i in range(n):
                mask[r, i] = z[r, i] >= limit
            for i in range(n):
                masked[r, i] = weight[r, i] if z[r, i] >= limit else np.float32(0)
            if drawn.shape[1]:
                row_search(z[r], mask[r], columns, drawn[r], by_draw)
        return True

    return numba.njit(draw)
