"""Random bits and Gumbel noise on a CPU: in NumPy, and as pieces of compiled loops (numba, extra `sparse`).

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): its j-th number is a
function of key and j alone, so that a loop makes a row's bits where it needs them, several at a time.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

PLAIN_GAMMA, PLAIN_MIX_1, PLAIN_MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
GAMMA, MIX_1, MIX_2 = (np.uint64(c) for c in (PLAIN_GAMMA, PLAIN_MIX_1, PLAIN_MIX_2))
S27, S30, S31, S33 = (np.uint64(c) for c in (27, 30, 31, 33))
LOW_31, LOW_64 = np.uint64(2**31 - 1), 2**64 - 1
# (log(1 + f) - f + f^2 / 2) / f^3 for sqrt(1/2) <= 1 + f <= sqrt(2), interpolated at Chebyshev points.
L0, L1, L2, L3, L4, L5, L6, L7, L8 = (
    np.float32(c)
    for c in (
        0.3333333119, -0.2499998905, 0.2000070748, -0.1666848024, 0.1424993653,
        -0.1241105068, 0.1166151107, -0.1157120073, 0.07149753894,
    )
)  # fmt: skip
ONE, LN2, ROOT_BITS = np.float32(1), np.float32(math.log(2)), np.float32(math.sqrt(0.5)).view(np.int32)
UNIT, SMALLEST, SMALLEST_LEFT = np.float32(2.0**-31), np.float32(2.0**-32), np.float32(2.0**-25)
HALF = np.float32(0.5)


def key_of(seed: tuple[int, ...]) -> np.uint64:
    """A stream's key, by SplitMix64's own mixing of one number after the other (each modulo 2^64).

    Not by NumPy's `SeedSequence`, which is slow where every draw of a small layer wants a key.
    """
    key = 0
    for number in seed:
        key = (key + int(number) + PLAIN_GAMMA) & LOW_64
        key = (key ^ (key >> 30)) * PLAIN_MIX_1 & LOW_64
        key = (key ^ (key >> 27)) * PLAIN_MIX_2 & LOW_64
        key ^= key >> 31
    return np.uint64(key)


def words(count: int, key: np.uint64) -> np.ndarray:
    """The first numbers of SplitMix64: uint64 [count]."""
    x = np.arange(1, count + 1, dtype=np.uint64)
    x *= GAMMA
    x += key
    for shift, factor in ((S30, MIX_1), (S27, MIX_2)):
        x ^= x >> shift
        x *= factor
    x ^= x >> S31
    return x


def random_bits(rows: int, n: int, seed: tuple[int, ...]) -> np.ndarray:
    """31 random bits in every element, int32 [rows, n]: a word's low half lies half a row before its high one."""
    half = (n + 1) // 2
    word = words(rows * half, key_of(seed)).reshape(rows, half)
    bits = np.empty((rows, 2 * half), np.int32)
    np.bitwise_and(word, LOW_31, out=bits[:, :half], casting="unsafe")
    np.right_shift(word, S33, out=bits[:, half:], casting="unsafe")
    return bits[:, :n]


@cache
def wide_vectors() -> Any:
    """For a compiled function to call: its loops may use the processor's widest vectors.

    LLVM keeps to half of AVX-512's 64 bytes by default, for older processors that slow down; these loops gain.
    """
    from numba import types
    from numba.extending import intrinsic

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # llvmlite's own `add` knows attributes without values alone.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    @intrinsic
    def wide(typing: Any) -> Any:
        return types.none(), code

    return wide


@cache
def row_of_bits() -> Any:
    """Compiled: the bits of one row, as `random_bits` makes them.

    Returns:
        A function (key, row, bits int32 [2 * half]); what is above the row's length is left over.
    """
    import numba

    wide = wide_vectors()

    def fill(key: Any, row: Any, bits: Any) -> None:
        wide()
        half = len(bits) // 2
        state = key + np.uint64(row * half) * GAMMA
        for j in range(half):
            state += GAMMA
            x = (state ^ (state >> S30)) * MIX_1
            x = (x ^ (x >> S27)) * MIX_2
            x = x ^ (x >> S31)
            bits[j] = np.int32(x & LOW_31)
            bits[half + j] = np.int32(x >> S33)

    return numba.njit(fill)


@cache
def gumbel_of_bits() -> Any:
    """Compiled: 31 random bits, an int32 of which the sign is ignored, to standard Gumbel noise in fp32."""
    import numba

    # No reassociation here: it would take the corrections for rounding for nothing.
    @numba.njit(fastmath={"contract"}, inline="always")  # type: ignore[untyped-decorator]
    def parts(x: Any) -> Any:
        """Whole power of two and what is left of a normal number > 0: x = 2^power (1 + f)."""
        bits = np.float32(x).view(np.int32)
        power = np.int32(np.int32(bits - ROOT_BITS) >> np.int32(23))  # numba would shift 64 bits
        return np.float32(power), np.int32(bits - (power << np.int32(23))).view(np.float32) - ONE

    @numba.njit(fastmath={"contract"}, inline="always")  # type: ignore[untyped-decorator]
    def logarithm(power: Any, f: Any) -> Any:
        """log(2^power (1 + f)) to 1e-7 of itself, also next to 1."""
        high = L4 + f * (L5 + f * (L6 + f * (L7 + f * L8)))
        series = L0 + f * (L1 + f * (L2 + f * (L3 + f * high)))
        return power * LN2 + (f - f * f * (HALF - f * series))

    @numba.njit(fastmath={"contract"}, inline="always")  # type: ignore[untyped-decorator]
    def noise(bits: Any) -> Any:
        u = (np.float32(np.int32(bits & np.int32(0x7FFFFFFF))) + HALF) * UNIT
        power, f = parts(max(ONE - u, SMALLEST_LEFT))
        # Next to 1, where masks are decided, 1 - u would lose what u has.
        f = -u if power == 0 else f
        power, f = parts(max(-logarithm(power, f), SMALLEST))
        return -logarithm(power, f)

    return noise


@cache
def gumbel_loops() -> tuple[Any, Any]:
    """Compiled: noise from given bits, and rows of noise from a key."""
    import numba

    noise, row_bits, wide = gumbel_of_bits(), row_of_bits(), wide_vectors()

    @numba.njit(fastmath={"contract"})  # type: ignore[untyped-decorator]
    def of_bits(bits: Any, out: Any) -> None:
        wide()
        for i in range(out.shape[0]):
            out[i] = noise(bits[i])

    def of_key(key: Any, out: Any) -> None:
        bits = np.empty(2 * ((out.shape[1] + 1) // 2), np.int32)
        for r in range(out.shape[0]):
            row_bits(key, r, bits)
            of_bits(bits, out[r])

    return of_bits, numba.njit(of_key)
