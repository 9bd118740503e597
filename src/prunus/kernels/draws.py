"""Compiled loops (numba, extra `sparse`) that draw masks on a CPU, in fp32.

While a row is in the cache it is perturbed, and its k largest and a few more are listed and masked; then the lists are
sorted, and what is too much is taken out.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from prunus.kernels.addresses import array_at
from prunus.kernels.noise import HALF, ONE, gumbel_of_bits, row_of_bits, wide_vectors

MOST_PASSES = 64
"""Counts of a row after which the search for a number that leaves enough and few ends."""
ABSENT = np.iinfo(np.int64).max
AT_ONCE = 64
"""Numbers that are compared with a limit at once."""
INFINITY_BITS, LESS_SIGN = np.int32(0x7F800000), np.int32(0x7FFFFFFF)
BITS_32, LOW_32 = np.int64(32), np.int64(0xFFFFFFFF)


def room(k: int, n: int) -> int:
    """How many of a row are listed at most: counts above a fixed number scatter by about the root of k."""
    return min(n, k + 2 * math.isqrt(k) + 2)


@cache
def value_key() -> Any:
    """Compiled: a number and its column as one integer; integers rise as the numbers fall, then with the column."""
    import numba

    def key(value: Any, column: Any) -> Any:
        # Adding zero: -0 and 0 are equal.
        bits = np.int64(np.float32(value + np.float32(0)).view(np.int32))
        return ~(bits ^ ((bits >> BITS_32) & np.int64(LESS_SIGN))) << BITS_32 | column

    return numba.njit(key)


@cache
def _columns_reaching() -> Any:
    """Compiled: which of a row reach a limit, ascending.

    Returns:
        A function (row fp32 [n], limit, columns int32 with room for them) that returns how many they are.
    """
    import numba
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    number, place = ir.FloatType(), ir.IntType(64)
    vector, first = ir.VectorType(number, AT_ONCE), ir.IntType(32)(0)
    same = ir.Constant(ir.VectorType(ir.IntType(32), AT_ONCE), [0] * AT_ONCE)

    @intrinsic
    def reached(typing: Any, row: Any, start: Any, limit: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            view = context.make_array(signature.args[0])(context, builder, arguments[0])
            here = builder.bitcast(builder.gep(view.data, [arguments[1]]), vector.as_pointer())
            values = builder.load(here)
            values.align = 4
            alone = builder.insert_element(ir.Constant(vector, ir.Undefined), arguments[2], first)
            limits = builder.shuffle_vector(alone, alone, same)
            return builder.bitcast(builder.fcmp_ordered(">=", values, limits), place)

        return types.uint64(row, types.int64, types.float32), code

    @intrinsic
    def lowest(typing: Any, bits: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.cttz(arguments[0], ir.IntType(1)(1))

        return types.int64(types.uint64), code

    def columns_reaching(row: Any, limit: Any, columns: Any) -> Any:
        found, whole = 0, len(row) - len(row) % AT_ONCE
        for i in range(0, whole, AT_ONCE):
            bits: Any = reached(row, i, limit)  # type: ignore[call-arg]
            while bits:
                columns[found] = i + lowest(bits)
                found += 1
                bits &= bits - np.uint64(1)
        for i in range(whole, len(row)):
            if row[i] >= limit:
                columns[found] = i
                found += 1
        return found

    return numba.njit(columns_reaching)


@cache
def list_rows() -> Any:
    """Compiled: perturb the logits, list each row's largest and mask the weight with them.

    Returns:
        A function (addresses of logits, weight, z, masked, all fp32 [R, n], of mask, bool [R, n] or [0, n], and of
        listed, int64 [R, room]; R, n, rows of the mask, room, k, key of the noise, scale) that fills z with logits +
        scale * noise, `masked` and `mask` with the masked weight and the mask of those listed, and each row of
        `listed` with the keys of its k largest or more, the rest ABSENT
        and the masked weight. It returns False where no number parts so few from the others (many equals), or at NaN.
    """
    import numba

    noise, row_bits, wide, key_of_value = gumbel_of_bits(), row_of_bits(), wide_vectors(), value_key()
    columns_reaching, array = _columns_reaching(), array_at()

    @numba.njit(fastmath={"contract"})  # type: ignore[untyped-decorator]
    def perturb(logits: Any, bits: Any, scale: Any, z: Any) -> bool:
        wide()
        signs = np.int32(0)
        for i in range(z.shape[0]):
            value = np.float32(logits[i] + scale * noise(bits[i]))
            z[i] = value
            # Bits above infinity's are NaN; a comparison would keep the loop from being done several at a time.
            signs = np.int32(signs | np.int32(INFINITY_BITS - np.int32(value.view(np.int32) & LESS_SIGN)))
        return signs >= 0

    @numba.njit(fastmath={"reassoc"})  # type: ignore[untyped-decorator]
    def reaching(row: Any, limit: Any) -> Any:
        wide()
        found = np.float32(0)  # counts in fp32 are exact to 2^24, and added several at a time
        for i in range(row.shape[0]):
            found += ONE if row[i] >= limit else np.float32(0)
        return found

    @numba.njit  # type: ignore[untyped-decorator]
    def leaving(row: Any, k: Any, most: Any, guess: Any, scale: Any) -> Any:
        """A number that k to `most` of the row reach, NaN if none was found; few passes where rows are alike."""
        low, high, limit = np.float32(-np.inf), np.float32(np.inf), guess
        aim = HALF * np.float32(k + most)
        at_low, at_high = np.float32(len(row)), np.float32(0)
        for step in range(MOST_PASSES):
            found = reaching(row, limit)
            if k <= found <= most:
                return limit
            if found > most:
                low, at_low = limit, found
            else:
                high, at_high = limit, found
            if low == -np.inf or high == np.inf:
                # The tail of Gumbel noise falls like exp(-x / scale); wider steps later, for logits that spread.
                far = np.float32(math.log(max(found, HALF) / aim) * 2.0 ** max(0, step - 4))
                limit += scale * far
            else:
                share = (at_low - aim) / (at_low - at_high) if step % 3 else HALF
                limit = low + (high - low) * np.float32(share)
                if not low < limit < high:
                    break
        return np.float32(np.nan)

    @numba.njit  # type: ignore[untyped-decorator]
    def apply(row: Any, limit: Any, weight: Any, r: Any, mask: Any, masked: Any) -> None:
        wide()
        if r < len(mask):
            for i in range(len(row)):
                mask[r, i] = row[i] >= limit
        for i in range(len(row)):
            masked[r, i] = weight[r, i] if row[i] >= limit else np.float32(0)

    def listing(
        logits_at: int, weight_at: int, z_at: int, masked_at: int, mask_at: int, listed_at: int,
        rows: int, n: int, mask_rows: int, most: int, k: int, key: Any, scale: Any,
    ) -> bool:  # fmt: skip
        logits, weight = array(logits_at, np.float32, (rows, n)), array(weight_at, np.float32, (rows, n))
        z, masked = array(z_at, np.float32, (rows, n)), array(masked_at, np.float32, (rows, n))
        mask, listed = array(mask_at, np.bool_, (mask_rows, n)), array(listed_at, np.int64, (rows, most))
        guess, step = np.float32(0), max(scale, np.float32(1e-3))
        columns, bits = np.empty(most, np.int32), np.empty(2 * ((n + 1) // 2), np.int32)
        for r in range(z.shape[0]):
            row = z[r]
            row_bits(key, r, bits)
            if not perturb(logits[r], bits, scale, row):
                return False
            guess = leaving(row, k, most, guess, step)
            if np.isnan(guess):
                return False
            apply(row, guess, weight, r, mask, masked)
            found = columns_reaching(row, guess, columns)
            for t in range(found):
                column = np.uint32(columns[t])
                listed[r, t] = key_of_value(row[column], np.int64(column))
            for t in range(found, most):
                listed[r, t] = ABSENT
        return True

    return numba.njit(listing)


@cache
def strike_rows() -> Any:
    """Compiled: leave each row's k largest of what is listed.

    Returns:
        A function (addresses of listed, int64 [R, room] in ascending rows, of drawn, int32 [R, k] or [R, 0], of
        masked, fp32 [R, n], and of mask, bool [R, n] or [0, n]; R, n, rows of the mask, room, k, columns of `drawn`)
        that takes the others out of mask and masked weight, and fills `drawn` with the columns of those that stay, by
        falling value; of equals the first stay.
    """
    import numba

    array = array_at()

    def striking(
        listed_at: int, drawn_at: int, masked_at: int, mask_at: int,
        rows: int, n: int, mask_rows: int, most: int, k: int, wanted: int,
    ) -> None:  # fmt: skip
        listed, drawn = array(listed_at, np.int64, (rows, most)), array(drawn_at, np.int32, (rows, wanted))
        masked, mask = array(masked_at, np.float32, (rows, n)), array(mask_at, np.bool_, (mask_rows, n))
        for r in range(rows):
            for t in range(wanted):
                drawn[r, t] = np.int32(listed[r, t] & LOW_32)
            for t in range(k, most):
                if listed[r, t] == ABSENT:
                    break
                column = np.uint32(listed[r, t] & LOW_32)
                masked[r, column] = 0
                if r < mask_rows:
                    mask[r, column] = False

    return numba.njit(striking)
