"""Fake quantisation for training: values on a grid of few bits, gradients as if nothing had happened."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from prunus.errors import ConfigError

Bits = Literal[8, 4, 2, 1]
Scheme = Literal["symmetric", "released"]
RELEASED_LEVEL, RELEASED_SLOPE = 127.5, 0.4


def scale_of(values: Tensor, bits: int, *, per_channel: bool = False) -> Tensor:
    """Step of the symmetric grid of `bits` bits: max |v| / (2^(bits-1) - 1), of all values or of each first index.

    With one bit it is the mean |v| of what is not zero, the best step for +-1 in squared error.

    Returns:
        A scalar, or [C, 1, ...] broadcastable to the values; detached, never zero.
    """
    magnitude = values.detach().abs()
    dims = tuple(range(1, values.dim())) if per_channel else tuple(range(values.dim()))
    if bits == 1:
        count = (magnitude > 0).sum(dims, keepdim=True).clamp_min(1)
        step = magnitude.sum(dims, keepdim=True) / count
    else:
        step = magnitude.amax(dims, keepdim=True) / (2 ** (bits - 1) - 1)
    step = torch.where(step > 0, step, torch.ones_like(step))
    return step if per_channel else step.reshape(())


def on_grid(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Integers as floats: round(v / scale) within +-(2^(bits-1) - 1), for one bit the sign; zero stays zero."""
    if bits == 1:
        return values.sign()
    limit = 2 ** (bits - 1) - 1
    return (values / scale).round().clamp(-limit, limit)


def quantized(values: Tensor, bits: Bits, *, per_channel: bool = False, scheme: Scheme = "symmetric") -> Tensor:
    """The values on their grid, in their own units; the gradient passes as it is (straight through).

    `symmetric` is idempotent and at most half a step off. `released` is what the authors of dynamic probabilistic
    pruning released: 8 bits alone, round(127.5 v / max |v|) left in units of the grid, and a gradient of
    scale clip(0.4 v, -1, 1) including that of the maximum; it needs a batch norm behind it.

    Args:
        values: weights or activations; zeros (masked weights) stay zeros.
        bits: 8, 4, 2 or 1.
        per_channel: one step for each index of the first dimension.
        scheme: see above.

    Raises:
        ConfigError: other bits or another scheme.
    """
    if bits not in (8, 4, 2, 1) or scheme not in ("symmetric", "released"):
        raise ConfigError("quantisation", f"{bits} bits, scheme {scheme!r}", "use 8, 4, 2 or 1 bits, 'symmetric'")
    if scheme == "released":
        if bits != 8 or per_channel:
            raise ConfigError("quantisation", f"the released scheme with {bits} bits", "it has 8 bits for the tensor")
        return _released(values)
    scale = scale_of(values, bits, per_channel=per_channel)
    found = _StraightThrough.apply(values, on_grid(values.detach(), scale, bits) * scale)
    assert isinstance(found, Tensor)
    return found


class _StraightThrough(torch.autograd.Function):
    """The second argument's value with the first one's gradient, exactly (v + (q - v) would round)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _released(values: Tensor) -> Tensor:
    largest = values.abs().amax()
    scale = RELEASED_LEVEL / torch.where(largest > 0, largest, torch.ones_like(largest))
    surrogate = scale * (RELEASED_SLOPE * values).clamp(-1, 1)
    return surrogate + ((scale * values).round() - surrogate).detach()


def stored_bits(kept: int, n: int, rows: int, bits: int) -> int:
    """Bits of a pattern with `kept` of `n` in each of `rows` rows: values and indices of ceil(log2 n) bits each."""
    return rows * kept * (bits + max(n - 1, 0).bit_length())
