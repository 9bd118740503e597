"""The processes that share the work: one alone, or those that `accelerate launch` or `torchrun` started."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError, PruneError

if TYPE_CHECKING:  # it takes a second to import, and only what trains needs it
    from accelerate import Accelerator

SPLITTING = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "TP")


@contextmanager
def accelerator() -> Iterator[Accelerator]:
    """An Accelerator for the device and the processes, without mixed precision (see `runtime.precision`).

    Whatever accelerate remembers globally is put back afterwards, so that the caller's own Accelerator, made before or
    after, keeps its mixed precision and its gradient accumulation; a process group that several processes share stays.

    Raises:
        ConfigError: a launch that splits the model itself.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import GradientAccumulationPlugin

    states = (PartialState, AcceleratorState, GradientState)
    before = [dict(state._shared_state) for state in states]
    # The caller's mixed precision would patch the model's forward and, in fp16, scale gradients that nobody unscales.
    AcceleratorState._reset_state()
    try:
        made = Accelerator(
            mixed_precision="no",
            cpu=_only_cpu(),
            # Given here, it overrides the environment, which would divide the loss.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],  # type: ignore[list-item]
        )
        if made.distributed_type.name in SPLITTING:
            raise ConfigError(
                "accelerate launch",
                f"{made.distributed_type.name} splits the model over the processes",
                "launch with data parallelism alone: torchrun, or accelerate launch --multi_gpu",
            )
        yield made
    finally:
        for state, saved in zip(states, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(saved)


def _only_cpu() -> bool:
    return not torch.accelerator.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def distributed() -> bool:
    """True if a process group of several processes is up."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    """This process's number; 0 where there is only one."""
    return torch.distributed.get_rank() if distributed() else 0


def checked_by_first(check: Callable[[], object]) -> None:
    """Run a check on rank 0; what it refuses, all ranks refuse, so that none waits for another."""
    found: list[PruneError | None] = [None]
    if rank() == 0:
        try:
            check()
        except PruneError as error:
            found = [error]
    if distributed():
        torch.distributed.broadcast_object_list(found)
    if found[0] is not None:
        raise found[0]


def average_over_ranks_(tensors: list[Tensor]) -> None:
    """Replace each floating-point tensor by its mean over all ranks, in place; nothing happens in a single process."""
    if not distributed():
        return
    for tensor in tensors:
        # Kept in a contiguous copy because collectives refuse other memory formats.
        total = tensor.detach().contiguous().clone()
        torch.distributed.all_reduce(total)
        tensor.copy_(total / torch.distributed.get_world_size())


def average_gradients_(parameters: Sequence[nn.Parameter]) -> None:
    """Average gradients over ranks, so that every rank takes the same step and holds the same gates and weights."""
    if not distributed():
        return
    for parameter in parameters:
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= torch.distributed.get_world_size()


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


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place; the tensor itself if there is one."""
    if distributed():
        torch.distributed.all_reduce(tensor)
    return tensor


def gathered(tensor: Tensor) -> list[Tensor]:
    """The tensor of every process, in the order of the ranks; of this one alone where there are no others."""
    if not distributed():
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor)
    return parts


def gathered_objects(own: Any) -> list[Any]:
    """What every process has, in the order of the ranks; of this one alone where there are no others."""
    if not distributed():
        return [own]
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, own)
    return parts
