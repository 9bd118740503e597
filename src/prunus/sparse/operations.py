"""Products with a condensed weight: y[b, o] = sum_j values[o, j] x[b, index[o, j]], as a torch operation.

On a CPU compiled loops take them (numba, extra `sparse`), on CUDA devices Triton kernels. Without numba or triton, or
where triton cannot compile, they go through `embedding_bag` on the transposed input.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from prunus.errors import first_line
from prunus.kernels import products
from prunus.kernels.convolutions import Geometry, convolved, geometry_of
from prunus.kernels.products import looped

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Types of inputs that the loops and kernels take; others go through `embedding_bag`."""


def product(x: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """The product [B, O] of x [B, I] with values [O, k] at the columns index [O, k], without a gradient."""
    if in_loops(x, values):
        return looped(x, values, index)
    on_cuda = _on_cuda(x, values)
    return bagged(x, values, index) if on_cuda is None else on_cuda(x, values, index)


def bagged(x: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """`product` by torch's own operations, on any device."""
    across = x.t().contiguous()
    found = F.embedding_bag(wide(index), across, per_sample_weights=values.to(x.dtype), mode="sum")
    return found.t().contiguous()


@torch.library.custom_op("prunus::condensed", mutates_args=())
def condensed(x: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """`product` as an operation of torch: it has a gradient, compiles and exports.

    Args:
        x: [B, I].
        values: [O, k], fp32 or bf16.
        index: [O, k], int16 (read as unsigned), int32 or int64.
    """
    return product(x, values, index)


@condensed.register_fake
def _(x: Tensor, values: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], values.shape[0])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    """Through the dense weight: training condensed layers is not what they are for, but it works."""
    x, values, index = ctx.saved_tensors
    columns = wide(index).long()
    for_x = for_values = None
    if ctx.needs_input_grad[0]:
        dense = values.new_zeros(len(values), x.shape[1]).scatter_(1, columns, values)
        for_x = gradient @ dense.to(gradient.dtype)
    if ctx.needs_input_grad[1]:
        for_values = (gradient.t() @ x).gather(1, columns).to(values.dtype)
    return for_x, for_values, None


condensed.register_autograd(_backward, setup_context=_save)


def convolution(x: Tensor, values: Tensor, index: Tensor, geometry: Geometry) -> Tensor:
    """The convolution [B, O, H', W'] of x [B, Cin, H, W] with condensed filters [O, k], without a gradient."""
    if in_loops(x, values):
        return convolved(x.float(), values, index, geometry).to(x.dtype)
    g = geometry
    patches = F.unfold(x, g.kernel, g.dilation, g.padding, g.stride).transpose(1, 2)
    out = product(patches.reshape(-1, patches.shape[2]), values, index)
    return out.view(len(x), patches.shape[1], len(values)).transpose(1, 2).reshape(len(x), len(values), *g.out)


@torch.library.custom_op("prunus::condensed_conv2d", mutates_args=())
def condensed_conv2d(
    x: Tensor, values: Tensor, index: Tensor, kernel: list[int], stride: list[int], padding: list[int],
    dilation: list[int],
) -> Tensor:  # fmt: skip
    """`convolution` as an operation of torch, like `condensed`; the lists are (height, width)."""
    return convolution(x, values, index, geometry_of(x, kernel, stride, padding, dilation))


@condensed_conv2d.register_fake
def _(x: Tensor, values: Tensor, index: Tensor, *settings: list[int]) -> Tensor:
    return x.new_empty(x.shape[0], values.shape[0], *geometry_of(x, *settings).out)


def _save_conv2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.settings = inputs[3:]


def _backward_conv2d(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Through the dense weight, as `_backward`."""
    x, values, index = ctx.saved_tensors
    kernel, *settings = ctx.settings
    columns, shape = wide(index).long(), (len(values), x.shape[1], *kernel)
    for_x = for_values = None
    if ctx.needs_input_grad[0]:
        dense = values.new_zeros(shape).flatten(1).scatter_(1, columns, values).view(shape)
        for_x = conv2d_input(x.shape, dense.to(gradient.dtype), gradient, *settings)
    if ctx.needs_input_grad[1]:
        for_weight = conv2d_weight(x, shape, gradient, *settings)
        for_values = for_weight.flatten(1).gather(1, columns).to(values.dtype)
    return for_x, for_values, *(None,) * 5


condensed_conv2d.register_autograd(_backward_conv2d, setup_context=_save_conv2d)


def narrow(index: Tensor, inputs: int) -> Tensor:
    """Column numbers in the fewest bits: int16 (read as unsigned) up to 65,536 inputs, else int32."""
    if inputs > 65_536:
        return index.to(torch.int32)
    return torch.where(index > 32_767, index - 65_536, index).to(torch.int16)


def wide(index: Tensor) -> Tensor:
    """Column numbers as int32 or int64, as torch's operations take them."""
    return index.to(torch.int32) & 0xFFFF if index.dtype == torch.int16 else index


def in_autocast(x: Tensor) -> Tensor:
    """x in the type that autocast, where it is on, gives a dense layer's inputs."""
    kind = "cpu" if x.is_cpu else x.device.type
    if not torch.is_autocast_enabled(kind) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(kind))


def reads_shorts(x: Tensor, values: Tensor) -> bool:
    """Whether `product` with this x reads int16 columns as they are, so that wide ones need not be kept for it."""
    return in_loops(x, values) or _on_cuda(x, values) is not None


def in_loops(x: Tensor, values: Tensor) -> bool:
    """Whether the compiled loops take the product of this x and these values."""
    return (
        x.is_cpu
        and (x.dtype == torch.float32 or x.dtype in FLOATS)
        and (values.dtype == torch.float32 or values.dtype == torch.bfloat16)
        and products.available()
    )


def _on_cuda(x: Tensor, values: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    if x.device.type != "cuda" or x.dtype not in FLOATS or values.dtype not in FLOATS:
        return None
    return _triton(x.device)


@cache
def _triton(device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """The product in Triton, or None where triton is missing or does not work on this device.

    It is tried on one number: triton compiles at the first call, for which the machine may lack a C compiler or the
    device may be too old, and neither should stop what ran before.
    """
    try:
        from prunus.kernels.triton import triton_product
    except ImportError:
        return None
    one = torch.ones(1, 1, device=device)
    try:
        triton_product(one, one, torch.zeros(1, 1, dtype=torch.int16, device=device))
    except Exception as error:
        message = f"condensed layers use torch's embedding_bag on {device}: Triton failed ({first_line(error)})"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return None
    return triton_product
