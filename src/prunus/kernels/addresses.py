"""Arrays from addresses in compiled loops (numba, extra `sparse`)."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def array_at() -> Any:
    """A function (address, like, shape) for compiled code: the contiguous array of numbers like `like` that lies there.

    Addresses are passed faster than arrays, whose every field numba unpacks at each call.
    """
    from numba import carray, njit, types  # type: ignore[attr-defined]
    from numba.extending import intrinsic

    def pointer(typing: Any, address: Any, like: Any) -> Any:
        kind = types.CPointer(like.dtype)

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(kind))

        return kind(address, like), code

    at: Any = intrinsic(pointer)
    return njit(lambda address, like, shape: carray(at(address, like), shape))
