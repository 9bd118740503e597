"""One row of a condensed product for 16 to 64 columns at once, as a numba intrinsic in LLVM's vectors.

The sums stay in vector registers until the row is done; LLVM splits the vectors into what the processor has.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

LANES = 16
"""Numbers in a vector."""
MOST_VECTORS = 4
"""Vectors whose sums stay in registers, on AVX2 too (16 registers of 8)."""
CHAINS = 4
"""Sums that don't wait for each other; one alone waits for its last addition at every weight."""


def not_unrolled(builder: Any, last: Any) -> None:
    """Tell LLVM not to unroll the loop whose last block this is.

    Where the number of rounds differs from call to call, what is left over after whole unrolled rounds is a second loop
    whose end the processor can't foresee.
    """
    module = builder.module
    off = module.add_metadata(["llvm.loop.unroll.disable"])
    loop = module.add_metadata([off, last.name])  # a node of its own: equal ones are shared
    loop.operands = (loop, off)
    last.terminator.set_metadata("llvm.loop", loop)


def row_of_sums(vectors: int, *, from_bits: bool, through_table: bool, paired: bool = False, onto: bool = False) -> Any:
    """out[o, at + c] = sum_j values[j] across[start of index[j], at + c] for c < 16 `vectors`, `count` j from `begin`.

    Args:
        vectors: 1 to 4.
        from_bits: values are the bits of bf16 numbers, not fp32.
        through_table: `across` is flat, and a column starts at table[column]; else it is [I, n], one row per column.
        paired: `across` is words [I, n / 2] of two bf16 numbers: of 32, number w lies low in word w, w + 16 high.
            `vectors` is even, and there is no table.
        onto: add to what `out` holds.

    Returns:
        A function (values, index, table, across, out [O, n], o, at, begin, count) for compiled code; arrays contiguous,
        values and index of any shape. Nothing is checked: `across` must reach 16 `vectors` beyond every start.
    """
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    number, word, place = ir.FloatType(), ir.IntType(32), ir.IntType(64)
    vector = ir.VectorType(number, LANES)
    words = ir.VectorType(word, LANES)
    same = ir.Constant(words, [0] * LANES)
    nothing = ir.Constant(vector, ir.Undefined)
    fused = ("contract",)
    at_once = max(1, CHAINS // vectors)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        views = [context.make_array(t)(context, builder, a)
                 for t, a in zip(signature.args[:5], arguments[:5], strict=True)]  # fmt: skip
        weights, columns, starts, rows, sums = (view.data for view in views)
        row, shift, begin, count = arguments[5:]
        width = builder.extract_value(views[4].shape, 1)
        stride = builder.udiv(width, place(2)) if paired else width
        totals = [cgutils.alloca_once(builder, vector) for _ in range(at_once * vectors)]

        def lanes(base: Any, start: Any, number_of_vector: int, kind: Any = vector) -> Any:
            first = builder.add(builder.add(start, shift), place(number_of_vector * LANES))
            return builder.bitcast(builder.gep(base, [first]), kind.as_pointer())

        def inputs(start: Any) -> Any:
            for i in range(vectors // 2 if paired else vectors):
                many = builder.load(lanes(rows, start, i, words if paired else vector))
                many.align = 4
                if paired:
                    low = builder.shl(many, ir.Constant(words, [16] * LANES))
                    yield builder.bitcast(low, vector)
                    many = builder.bitcast(builder.and_(many, ir.Constant(words, [0xFFFF0000] * LANES)), vector)
                yield many

        def loaded(base: Any, offset: Any) -> Any:
            found = builder.load(builder.gep(base, [offset]))
            return builder.zext(found, place) if found.type.width < 64 else found

        def add(here: Any, chain: int) -> None:
            value = builder.load(builder.gep(weights, [here]))
            if from_bits:
                value = builder.bitcast(builder.shl(builder.zext(value, word), word(16)), number)
            column = loaded(columns, here)
            start = loaded(starts, column) if through_table else builder.mul(column, stride)
            spread = builder.shuffle_vector(builder.insert_element(nothing, value, word(0)), nothing, same)
            for i, many in enumerate(inputs(start)):
                total = totals[chain * vectors + i]
                product = builder.fmul(spread, many, flags=fused)
                builder.store(builder.fadd(builder.load(total), product, flags=fused), total)

        for i, total in enumerate(totals):
            before = ir.Constant(vector, [0.0] * LANES)
            if onto and i < vectors:
                before = builder.load(lanes(sums, builder.mul(row, width), i))
                before.align = 4
            builder.store(before, total)
        whole = builder.udiv(count, place(at_once))
        with cgutils.for_range(builder, whole, intp=place) as loop:
            for chain in range(at_once):
                add(builder.add(begin, builder.add(builder.mul(loop.index, place(at_once)), place(chain))), chain)
            last = builder.basic_block
        if onto:
            not_unrolled(builder, last)
        if at_once > 1:
            with cgutils.for_range(builder, count, start=builder.mul(whole, place(at_once)), intp=place) as loop:
                add(builder.add(begin, loop.index), 0)
        for i in range(vectors):
            parts = [builder.load(total) for total in totals[i::vectors]]
            builder.store(reduce(builder.fadd, parts), lanes(sums, builder.mul(row, width), i)).align = 4
        return context.get_dummy_value()

    def add_row(
        typing: Any, values: Any, index: Any, table: Any, across: Any, out: Any, o: Any, at: Any, begin: Any, count: Any
    ) -> Any:
        return types.void(values, index, table, across, out, *(types.int64,) * 4), code

    return intrinsic(add_row)
