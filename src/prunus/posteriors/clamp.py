"""A clamp that nothing gets stuck at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def inward_clamp(x: Tensor, low: float, high: float) -> Tensor:
    """`x` within [low, high], with the gradient wherever a descent step would lead back inside."""
    return _InwardClamp.apply(x, low, high)  # type: ignore[no-any-return, no-untyped-call]


class _InwardClamp(torch.autograd.Function):
    """Clamp that keeps the gradient wherever a descent step would lead back inside.

    A plain clamp, softplus or sigmoid has no gradient left at its end, so a unit that once got there could never
    return.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ends = (low, high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        low, high = ctx.ends
        outward = ((x <= low) & (gradient > 0)) | ((x >= high) & (gradient < 0))
        return gradient.masked_fill(outward, 0.0), None, None
