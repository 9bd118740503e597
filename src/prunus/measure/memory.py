"""Peak memory of a forward pass: on CUDA from the allocator, elsewhere from the tensors that are alive."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunus.runtime.arguments import as_arguments
from prunus.runtime.processes import model_device


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations return within the context, until they are freed.

    Views share their storage and count once; what a kernel allocates for itself does not count.

    Attributes:
        live: bytes alive now.
        peak: most bytes alive at any time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()

    def count(self, value: Any) -> None:
        """Take the storages of all tensors in a value into account."""
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                self._count_storage(tensor.untyped_storage())

    def _count_storage(self, storage: torch.UntypedStorage) -> None:
        # The address of the storage's C++ object; that of its data is shared by empty storages.
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count(result)
        return result


def peak_memory(model: nn.Module, inputs: Any) -> int:
    """Most bytes in use during one forward pass: parameters, buffers, inputs and live activations.

    Args:
        model: run as it is (set eval mode and no_grad around it).
        inputs: on the model's device.
    """
    args, kwargs = as_arguments(inputs, model)
    device = model_device(model)
    held = [t.nbytes for t in (*model.parameters(), *model.buffers(), *tree_leaves((args, kwargs))) if _counts(t)]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        model(*args, **kwargs)
        return sum(held) + torch.cuda.max_memory_allocated(device) - before
    return live_memory(model, inputs)


def live_memory(model: nn.Module, inputs: Any) -> int:
    """Most bytes of parameters, buffers, inputs and live activations at once in a pass, the same on every machine.

    Storages of tensors count, and what kernels allocate for themselves does not.

    Args:
        model: run as it is (set eval mode and no_grad around it).
        inputs: on the model's device.
    """
    args, kwargs = as_arguments(inputs, model)
    counter = LiveBytes()
    counter.count((list(model.parameters()), list(model.buffers()), args, kwargs))
    with counter:
        model(*args, **kwargs)
    return counter.peak


def _counts(value: Any) -> bool:
    return isinstance(value, Tensor)
