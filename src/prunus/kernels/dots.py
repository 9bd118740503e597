"""One row of a condensed product of bf16 numbers, two weights at a time, as a numba intrinsic.

Only for processors with AVX-512's products of bf16 pairs, see `processor.fast_dots`. Products are exact and sums fp32;
numbers below 1.2e-38 count as zeros.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from prunus.kernels.vectors import CHAINS, LANES


def row_of_dots(vectors: int) -> Any:
    """out[o, c] = sum_j values[j] across[index[j], c] for c < 16 `vectors` and 2 `pairs` j from `begin`.

    Args:
        vectors: 2 or 4.

    Returns:
        A function (values, index, across, out [O, n], o, begin, pairs) for compiled code; arrays contiguous, values the
        bits of bf16 numbers, `across` words as in `row_of_sums`. Nothing is checked.
    """
    from llvmlite import binding, ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    binding.initialize_native_asmparser()  # LLVM's function for it has a type that llvmlite lacks
    word, place = ir.IntType(32), ir.IntType(64)
    vector, words = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(word, LANES)
    dot = ir.InlineAsm(ir.FunctionType(vector, (vector, words, words)), "vdpbf16ps $3, $2, $0", "=v,0,v,v")
    chains = CHAINS // vectors

    def all_of(value: int) -> Any:
        return ir.Constant(words, [value] * LANES)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        views = [context.make_array(t)(context, builder, a)
                 for t, a in zip(signature.args[:4], arguments[:4], strict=True)]  # fmt: skip
        weights, columns, rows, sums = (view.data for view in views)
        row, begin, pairs = arguments[4:]
        width = builder.extract_value(views[3].shape, 1)
        stride = builder.udiv(width, place(2))
        totals = [cgutils.alloca_once(builder, vector) for _ in range(chains * vectors)]
        for total in totals:
            builder.store(ir.Constant(vector, [0.0] * LANES), total)

        def start(here: Any) -> Any:
            column = builder.load(builder.gep(columns, [here]))
            return builder.mul(builder.zext(column, place) if column.type.width < 64 else column, stride)

        def inputs(at: Any, i: int) -> Any:
            many = builder.load(
                builder.bitcast(builder.gep(rows, [builder.add(at, place(i * LANES))]), words.as_pointer())
            )
            many.align = 4
            return many

        def add(here: Any, chain: int) -> None:
            two = builder.load(builder.bitcast(builder.gep(weights, [here]), word.as_pointer()))
            two.align = 2
            nothing = ir.Constant(words, ir.Undefined)
            spread = builder.shuffle_vector(builder.insert_element(nothing, two, word(0)), nothing, all_of(0))
            one, other = start(here), start(builder.add(here, place(1)))
            for i in range(vectors // 2):
                a, b = inputs(one, i), inputs(other, i)
                low = builder.or_(builder.and_(a, all_of(0xFFFF)), builder.shl(b, all_of(16)))
                high = builder.or_(builder.lshr(a, all_of(16)), builder.and_(b, all_of(0xFFFF0000)))
                for half, both in enumerate((low, high)):
                    total = totals[chain * vectors + 2 * i + half]
                    builder.store(builder.call(dot, [builder.load(total), spread, both]), total)

        whole = builder.udiv(pairs, place(chains))
        with cgutils.for_range(builder, whole, intp=place) as loop:
            first = builder.add(begin, builder.mul(loop.index, place(2 * chains)))
            for chain in range(chains):
                add(builder.add(first, place(2 * chain)), chain)
        with cgutils.for_range(builder, pairs, start=builder.mul(whole, place(chains)), intp=place) as loop:
            add(builder.add(begin, builder.mul(loop.index, place(2))), 0)
        for i in range(vectors):
            found = reduce(builder.fadd, [builder.load(total) for total in totals[i::vectors]])
            at = builder.add(builder.mul(row, width), place(i * LANES))
            builder.store(found, builder.bitcast(builder.gep(sums, [at]), vector.as_pointer())).align = 4
        return context.get_dummy_value()

    def row(typing: Any, values: Any, index: Any, across: Any, out: Any, o: Any, begin: Any, pairs: Any) -> Any:
        return types.void(values, index, across, out, *(types.int64,) * 3), code

    return intrinsic(row)
