"""What `torch.compile` calls as it is: drawing masks. Imported only while it compiles, since it loads the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@torch.compiler.disable  # type: ignore[untyped-decorator]
def eagerly(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """`function(*args)`, outside of the compiled graph."""
    return function(*args)
