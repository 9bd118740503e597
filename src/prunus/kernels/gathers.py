"""One row of a condensed product for one example, its inputs loaded one by one, as a numba intrinsic.

For processors whose own gathers are slower than single loads: four 16-bit columns come in one word, and each input is
loaded into its lane of a vector.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

LANES = 4
"""Columns in a word, and numbers in a vector."""
CHAINS = 4
"""Vectors of sums that don't wait for each other."""


def row_of_loads(*, from_bits: bool) -> Any:
    """sum_j values[o, j] x[index[o, j]] for as many j as CHAINS x LANES divide, and how many that are.

    Args:
        from_bits: values are the bits of bf16 numbers, not fp32.

    Returns:
        A function (values [O, k], index uint16 [O, k], x, o) -> (fp32, int64) for compiled code; arrays contiguous.
        Nothing is checked.
    """
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    number, word, place = ir.FloatType(), ir.IntType(32), ir.IntType(64)
    vector, bits = ir.VectorType(number, LANES), ir.VectorType(ir.IntType(16), LANES)
    words = ir.VectorType(word, LANES)
    at_once, mask = LANES * CHAINS, place(0xFFFF)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        views = [context.make_array(t)(context, builder, a)
                 for t, a in zip(signature.args[:3], arguments[:3], strict=True)]  # fmt: skip
        weights, columns, inputs = (view.data for view in views)
        count = builder.extract_value(views[0].shape, 1)
        begin = builder.mul(arguments[3], count)
        totals = [cgutils.alloca_once(builder, vector) for _ in range(CHAINS)]
        for total in totals:
            builder.store(ir.Constant(vector, [0.0] * LANES), total)

        def loaded(base: Any, first: Any, kind: Any, align: int) -> Any:
            found = builder.load(builder.bitcast(builder.gep(base, [first]), kind.as_pointer()))
            found.align = align
            return found

        def picked(first: Any) -> Any:
            four, found = loaded(columns, first, place, 2), ir.Constant(vector, ir.Undefined)
            for lane in range(LANES):
                column = builder.and_(builder.lshr(four, place(16 * lane)), mask)
                found = builder.insert_element(found, builder.load(builder.gep(inputs, [column])), word(lane))
            return found

        def values(first: Any) -> Any:
            if not from_bits:
                return loaded(weights, first, vector, 4)
            wide = builder.zext(loaded(weights, first, bits, 2), words)
            return builder.bitcast(builder.shl(wide, ir.Constant(words, [16] * LANES)), vector)

        whole = builder.udiv(count, place(at_once))
        with cgutils.for_range(builder, whole, intp=place) as loop:
            start = builder.add(begin, builder.mul(loop.index, place(at_once)))
            for chain, total in enumerate(totals):
                first = builder.add(start, place(chain * LANES))
                product = builder.fmul(values(first), picked(first), flags=("contract",))
                builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
        sums = reduce(builder.fadd, [builder.load(total) for total in totals])
        found = reduce(builder.fadd, [builder.extract_element(sums, word(lane)) for lane in range(LANES)])
        return context.make_tuple(builder, signature.return_type, (found, builder.mul(whole, place(at_once))))

    def row(typing: Any, values: Any, index: Any, x: Any, o: Any) -> Any:
        return types.Tuple((types.float32, types.int64))(values, index, x, types.int64), code

    return intrinsic(row)
