"""Where bf16 helps, and moving batches."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["auto", "bf16", "fp32"]


@functools.cache
def bf16_helps(device_type: str) -> bool:
    """True if training in bf16 is faster than in fp32: on GPUs that compute it, on CPUs with AMX.

    With AVX-512's bf16 instructions alone three networks trained slower in it (`benchmarks/training_speed.py`).
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_amx_tile_supported())
    return False


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """A bf16 autocast context, or none."""
    if precision == "bf16" or (precision == "auto" and bf16_helps(device.type)):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor, or every tensor in a tuple, list or dict, on the device."""
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), value)
