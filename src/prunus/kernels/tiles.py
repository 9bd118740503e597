"""Square tiles transposed in vector registers, as a numba intrinsic."""

from __future__ import annotations

from functools import cache
from typing import Any

from prunus.kernels.vectors import LANES


@cache
def transposed_tile() -> Any:
    """out[p + j, q + i] = x[r + i, c + j] for i, j < 16: a function (x, r, c, out, p, q) for compiled code.

    Both arrays have 4 bytes a number and are contiguous; nothing is checked. Four rounds of exchanges between pairs
    of vectors take 64 instructions for 256 numbers, which one by one are a load and a store each, far apart.
    """
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    word, place = ir.IntType(32), ir.IntType(64)
    vector = ir.VectorType(ir.FloatType(), LANES)

    def picked(lanes: list[int]) -> Any:
        return ir.Constant(ir.VectorType(word, LANES), lanes)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        given, r, c, made, p, q = arguments
        views = [context.make_array(signature.args[i])(context, builder, a) for i, a in ((0, given), (3, made))]
        (source, width), (target, across) = ((v.data, builder.extract_value(v.shape, 1)) for v in views)

        def at(base: Any, row: Any, column: Any, line: int, stride: Any) -> Any:
            first = builder.add(builder.mul(builder.add(row, place(line)), stride), column)
            return builder.bitcast(builder.gep(base, [first]), vector.as_pointer())

        lines = []
        for i in range(LANES):
            line = builder.load(at(source, r, c, i, width))
            line.align = 4
            lines.append(line)
        apart = 1
        while apart < LANES:
            low = picked([i if not i & apart else LANES + i - apart for i in range(LANES)])
            high = picked([i + apart if not i & apart else LANES + i for i in range(LANES)])
            for i in [i for i in range(LANES) if not i & apart]:
                a, b = lines[i], lines[i + apart]
                lines[i], lines[i + apart] = builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)
            apart *= 2
        for i, line in enumerate(lines):
            builder.store(line, at(target, p, q, i, across)).align = 4
        return context.get_dummy_value()

    def tile(typing: Any, x: Any, r: Any, c: Any, out: Any, p: Any, q: Any) -> Any:
        return types.void(x, types.int64, types.int64, out, types.int64, types.int64), code

    return intrinsic(tile)
