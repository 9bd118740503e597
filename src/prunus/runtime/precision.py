"""In which precision passes run: those that only take time may be in bf16, those that decide something are in fp32."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["auto", "bf16", "fp32"]

ROUNDING = 64 * torch.finfo(torch.float32).eps
"""Relative difference of two fp32 losses that is none: the order of sums differs between processors and threads."""


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


def fastest(device: torch.device, precision: Precision) -> Precision:
    """What `auto` means where nothing is decided: bf16 where the hardware is faster in it, otherwise fp32."""
    if precision == "auto":
        return "bf16" if bf16_helps(device.type) else "fp32"
    return precision


def deciding(precision: Precision) -> Precision:
    """What `auto` means where the result decides what stays: fp32, so that it doesn't depend on the hardware."""
    return "fp32" if precision == "auto" else precision


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """A context in bf16, or in the tensors' own types whatever surrounds it; `auto` is what is `fastest`."""
    if fastest(device, precision) == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return torch.autocast(device.type, enabled=False)


@contextmanager
def full_precision() -> Iterator[None]:
    """Within the context fp32 stays fp32: no autocast from outside, backward passes included, no TF32 or bf16 products.

    What is set for products is of the whole process; it is put back afterwards.
    """
    on_cpu: Any = torch.backends.mkldnn
    on_cuda: Any = torch.backends.cudnn
    backends = [on_cpu.matmul, on_cpu.conv, on_cpu.rnn]
    if torch.cuda.is_available():
        backends += [torch.backends.cuda.matmul, on_cuda.conv, on_cuda.rnn]
    rounded = [(b, b.fp32_precision) for b in backends if b.fp32_precision not in ("none", "ieee")]
    try:
        for backend, _ in rounded:
            backend.fp32_precision = "ieee"
        with ExitStack() as stack:
            for kind in ("cpu", *accelerators()):
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        for backend, setting in rounded:
            backend.fp32_precision = setting


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def accelerators() -> list[str]:
    """Kinds of devices besides the CPU that this process has."""
    found = torch.accelerator.current_accelerator()
    return [] if found is None else [found.type]


def lower(loss: float, than: float) -> bool:
    """Whether a loss is lower than another by more than the rounding of fp32."""
    return loss < than - ROUNDING * abs(than)


def widened(value: Any) -> Any:
    """The same with every bf16 or fp16 tensor in it in fp32."""
    half = (torch.bfloat16, torch.float16)
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.float() if t.dtype in half else t, value)


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor, or every tensor in a tuple, list or dict, on the device."""

    def moved(tensor: Tensor) -> Tensor:
        there = tensor.to(device, non_blocking=True)
        # Autograd can't keep what was made in inference mode.
        return there.clone() if there.is_inference() and not torch.is_inference_mode_enabled() else there

    return torch.utils._pytree.tree_map_only(Tensor, moved, value)
