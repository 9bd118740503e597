"""Where and how models lie while they are trained: on the training device, and channels-last where that is faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from prunus.data.datasets import ArrayDataset, DataSource, Part
from prunus.recovery.config import FinetuneConfig
from prunus.runtime.copies import copied
from prunus.runtime.modes import modes_kept
from prunus.runtime.precision import bf16_helps
from prunus.runtime.processes import model_device, training_device

if TYPE_CHECKING:
    from accelerate import Accelerator


RESIDENT_BYTES = 2**31


def resident(part: Part, device: torch.device) -> Part:
    """What is in memory on the device, if it leaves room for the rest."""
    return part.to(device) if isinstance(part, ArrayDataset) and part.nbytes <= RESIDENT_BYTES else part


@contextmanager
def placed(
    model: nn.Module,
    teacher: nn.Module | None,
    data: DataSource,
    config: FinetuneConfig,
    processes: Accelerator,
) -> Iterator[bool]:
    """Models on the training device and in the fastest layout within, and back where they were afterwards."""
    homes = [(m, model_device(m)) for m in (model, teacher) if m is not None]
    layouts = [(p, p.is_contiguous()) for m, _ in homes for p in m.parameters()]
    device = training_device(processes)
    for module, _ in homes:
        module.to(device)
    channels_last = _wants_channels_last(model, data, config, device)
    if channels_last:
        for module, _ in homes:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with nullcontext() if teacher is None else modes_kept(teacher):
            yield channels_last
    finally:
        for module, home in homes:
            module.to(home)
        model.eval()
        for parameter, contiguous in layouts if channels_last else []:
            if contiguous:
                parameter.data = parameter.data.contiguous()


def _wants_channels_last(model: nn.Module, data: DataSource, config: FinetuneConfig, device: torch.device) -> bool:
    if config.channels_last != "auto":
        return bool(config.channels_last)
    if device.type != "cuda" and not bf16_helps(device.type):
        return False
    images = isinstance(data.example_inputs, Tensor) and data.example_inputs.dim() == 4
    return images and any(p.dim() == 4 for p in model.parameters()) and runs_channels_last(model, data, device)


def runs_channels_last(model: nn.Module, data: DataSource, device: torch.device) -> bool:
    """False for models whose code needs contiguous activations, as a `view` after a convolution does."""
    if any(isinstance(m, fx.GraphModule) for m in model.modules()):
        return False
    trial = copied(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = data.example_inputs.to(device, memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            trial(inputs)
    except RuntimeError as error:
        if "view" in str(error) or "stride" in str(error):
            return False
        raise
    return True
