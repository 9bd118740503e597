"""The processes that share the work: one alone, or those that `accelerate launch` or `torchrun` started."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn


@contextmanager
def accelerator() -> Iterator[Accelerator]:
    """An Accelerator for the device and the processes, without mixed precision (see `prunus.precision` for that).

    One that the caller made before is joined. Otherwise what accelerate remembers globally is forgotten afterwards, so
    that the caller may still configure it; a process group that several processes share stays.
    """
    fresh = not PartialState._shared_state
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    # An Accelerator that joins another must not contradict its mixed precision.
    made = Accelerator(mixed_precision="no" if fresh else None, cpu=_only_cpu(), kwargs_handlers=handlers)  # type: ignore[list-item]
    try:
        yield made
    finally:
        if fresh:
            AcceleratorState._reset_state(reset_partial_state=True)


def _only_cpu() -> bool:
    return not torch.accelerator.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def distributed() -> bool:
    """True if a process group of several processes is up."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def average_over_ranks_(tensors: list[Tensor]) -> None:
    """Replace each floating-point tensor by its mean over all ranks, in place; nothing happens in a single process."""
    if not distributed():
        return
    for tensor in tensors:
        # Kept in a contiguous copy because collectives refuse other memory formats.
        total = tensor.detach().contiguous().clone()
        torch.distributed.all_reduce(total)
        tensor.copy_(total / torch.distributed.get_world_size())


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The floating-point buffers called `running_*` of a model, those of normalisations."""
    named = model.named_buffers()
    return [b for n, b in named if n.rpartition(".")[2].startswith("running_") and b.is_floating_point()]


def model_device(model: nn.Module) -> torch.device:
    """Device of the model's first tensor."""
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def prepared(model: nn.Module, processes: Accelerator) -> nn.Module:
    """The model as accelerate trains it: on the device, its gradients averaged over the processes."""
    with warnings.catch_warnings():
        # Its successor is younger than the oldest PyTorch that we run on.
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        wrapped: nn.Module = processes.prepare_model(model)
    return wrapped


def training_device(processes: Accelerator) -> torch.device:
    """Where this process trains."""
    # Accelerate numbers CPUs by rank, which tensors and checkpoints don't understand.
    return torch.device("cpu") if processes.device.type == "cpu" else processes.device


def unprepare_(model: nn.Module, wrapped: nn.Module, processes: Accelerator) -> None:
    """Take away what accelerate put on the model, so that it can be prepared again, saved and compared."""
    processes.unwrap_model(wrapped, keep_fp32_wrapper=False)
    model.__dict__.pop("_is_accelerate_prepared", None)
    model.__dict__.pop("_original_forward", None)
