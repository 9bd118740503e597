"""Products with a condensed weight on CUDA, in Triton: y[b, o] = sum_j values[o, j] x[b, index[o, j]].

Importing this file needs triton; `prunus.sparse.kernels` does it where it can and needs none. No extra names triton:
torch's CUDA builds for Linux bring the one version they work with, and asking for another would only break them.

Both kernels read values and columns once for a block of examples, sum in fp32 in as many places as a program has, and
add those up once at the end, so that threads exchange nothing while they read. They differ in where x lies: with few
examples a program picks single numbers from rows of x, with many it reads runs of examples from its transpose.
Block sizes follow from sizes of caches and registers; no GPU has timed them yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from prunus.errors import ConfigError

FEW = 16
"""Up to so many examples are read from x as it is; for more it is transposed first. Not timed yet."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int16, torch.int32, torch.int64)
ROWS = 4
"""Outputs of one program: few, so that a layer of a thousand outputs still fills a GPU at one example."""
NUMBERS = 4096
"""Products that a program holds at once: 32 for each of its 128 threads, which leaves registers for addresses."""
NEAR = 128 * 1024
"""Bytes of x that stay in the L1 cache of a multiprocessor, next to the values and columns that pass through."""


@triton.jit  # type: ignore[misc, untyped-decorator, unused-ignore]
def _columns(at: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Column numbers; shorts are read as unsigned. Read once, so they should be the first to leave the cache."""
    columns = tl.load(at, mask=inside, other=0, eviction_policy="evict_first")
    if columns.dtype == tl.int16:
        columns = columns.to(tl.int32) & 0xFFFF
    return columns


@triton.jit  # type: ignore[misc, untyped-decorator, unused-ignore]
def _few(
    x: tl.tensor, values: tl.tensor, index: tl.tensor, out: tl.tensor,
    examples: tl.tensor, inputs: tl.tensor, outputs: tl.tensor, kept: tl.tensor,
    EXAMPLES: tl.constexpr, ROWS: tl.constexpr, KEPT: tl.constexpr,
) -> None:  # fmt: skip
    """A block of examples and outputs from x [B, I]; products lie as [EXAMPLES, ROWS, KEPT]."""
    # One axis of programs: the others of a grid end at 65,535. Neighbours share their examples, hence what L1 holds.
    blocks = tl.cdiv(outputs, ROWS)
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    # 64 bits wherever a product of two sizes is an offset: each tensor may have more than 2^31 numbers.
    batch = (tl.program_id(0) // blocks).to(tl.int64) * EXAMPLES + tl.arange(0, EXAMPLES)
    there = (batch < examples)[:, None, None]
    total = tl.zeros([EXAMPLES, ROWS, KEPT], tl.float32)
    for start in range(0, kept, KEPT):
        places = start + tl.arange(0, KEPT)
        inside = (rows < outputs)[:, None] & (places < kept)[None, :]
        at = rows.to(tl.int64)[:, None] * kept + places[None, :]
        columns = _columns(index + at, inside)
        weights = tl.load(values + at, mask=inside, other=0, eviction_policy="evict_first").to(tl.float32)
        # Masked although the weight is zero there: zero times an infinity of x is not.
        singles = x + batch[:, None, None] * inputs + columns[None, :, :]
        found = tl.load(singles, mask=there & inside[None, :, :], other=0)
        total += weights[None, :, :] * found.to(tl.float32)
    to = out + batch[:, None] * outputs + rows[None, :]
    inside_out = (batch < examples)[:, None] & (rows < outputs)[None, :]
    tl.store(to, tl.sum(total, axis=2).to(out.dtype.element_ty), mask=inside_out)


@triton.jit  # type: ignore[misc, untyped-decorator, unused-ignore]
def _many(
    across: tl.tensor, values: tl.tensor, index: tl.tensor, out: tl.tensor,
    examples: tl.tensor, inputs: tl.tensor, outputs: tl.tensor, kept: tl.tensor,
    EXAMPLES: tl.constexpr, ROWS: tl.constexpr, KEPT: tl.constexpr,
) -> None:  # fmt: skip
    """As `_few` from the transpose [I, B]; products lie as [ROWS, KEPT, EXAMPLES], so that a column is one run."""
    blocks = tl.cdiv(outputs, ROWS)
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    batch = (tl.program_id(0) // blocks).to(tl.int64) * EXAMPLES + tl.arange(0, EXAMPLES)
    there = (batch < examples)[None, None, :]
    total = tl.zeros([ROWS, KEPT, EXAMPLES], tl.float32)
    for start in range(0, kept, KEPT):
        places = start + tl.arange(0, KEPT)
        inside = (rows < outputs)[:, None] & (places < kept)[None, :]
        at = rows.to(tl.int64)[:, None] * kept + places[None, :]
        columns = _columns(index + at, inside).to(tl.int64)
        weights = tl.load(values + at, mask=inside, other=0, eviction_policy="evict_first").to(tl.float32)
        runs = across + columns[:, :, None] * examples + batch[None, None, :]
        found = tl.load(runs, mask=inside[:, :, None] & there, other=0)
        total += weights[:, :, None] * found.to(tl.float32)
    to = out + batch[None, :] * outputs + rows[:, None]
    inside_out = (batch < examples)[None, :] & (rows < outputs)[:, None]
    tl.store(to, tl.sum(total, axis=1).to(out.dtype.element_ty), mask=inside_out)


def triton_product(x: Tensor, values: Tensor, index: Tensor, few: int = FEW) -> Tensor:
    """The product [B, O] in the type of x, summed in fp32, without a gradient.

    Args:
        x: [B, I], fp32, fp16 or bf16, on a CUDA device (any device in Triton's interpreter).
        values: [O, k], fp32, fp16 or bf16, on the same device.
        index: [O, k], int16 (read as unsigned), int32 or int64, each below I; that is not checked here.
        few: up to so many examples are read from x as it is, more from its transpose; for timing both.

    Raises:
        ConfigError: shapes, types or devices that do not fit.
    """
    _check(x, values, index)
    (examples, inputs), (outputs, kept) = x.shape, values.shape
    if examples == 0 or values.numel() == 0:
        return x.new_zeros(examples, outputs)
    out = x.new_empty(examples, outputs)
    block = blocks(examples, inputs, kept, x.element_size(), few)
    grid = (triton.cdiv(outputs, ROWS) * triton.cdiv(examples, block["EXAMPLES"]),)
    kernel, source = (_few, x.contiguous()) if examples <= few else (_many, x.t().contiguous())
    # Triton launches on the current device, whichever one the tensors are on.
    with torch.cuda.device_of(x):
        kernel[grid](source, values.contiguous(), index.contiguous(), out, examples, inputs, outputs, kept, **block)
    return out


def blocks(examples: int, inputs: int, kept: int, element: int, few: int) -> dict[str, int]:
    """Sizes of one program's block, powers of two, for x with `element` bytes a number.

    With many examples it takes so few of them that the part of x it reads from stays in L1, but whole sectors of 32
    bytes at least.
    """
    if examples <= few:
        together = min(triton.next_power_of_2(examples), 16)
    else:
        near = 1 << max(NEAR // (inputs * element), 1).bit_length() - 1
        together = min(triton.next_power_of_2(examples), max(16, min(near, 64)))
    return {
        "EXAMPLES": together,
        "ROWS": ROWS,
        "KEPT": min(triton.next_power_of_2(kept), NUMBERS // (together * ROWS), 256),
    }


def _check(x: Tensor, values: Tensor, index: Tensor) -> None:
    fits = x.dim() == 2 and values.dim() == 2 and values.shape == index.shape
    typed = x.dtype in FLOATS and values.dtype in FLOATS and index.dtype in INTEGERS
    if not fits or not typed or not x.device == values.device == index.device:
        found = ", ".join(f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in (x, values, index))
        fix = "give x [B, I] and values [O, k] in fp32, fp16 or bf16 and index [O, k] in integers, on one device"
        raise ConfigError("condensed product", found, fix)
