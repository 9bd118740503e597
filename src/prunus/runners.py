"""Ways to run a model (eager, torch.compile, ONNX Runtime), and the bytes that one pass needs."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.errors import ConfigError, PruneError
from prunus.export import export_onnx
from prunus.graph.capture import as_arguments

Mode = Literal["eager", "compiled", "onnx"]
MODES: tuple[Mode, ...] = get_args(Mode)
Runner = Callable[[], object]
# torch.compile quietly runs a class eagerly once it was compiled for this many of its instances; here it must not.
RECOMPILE_LIMIT = 10_000


def make_runner(model: nn.Module, inputs: Any, mode: Mode, threads: int, stack: ExitStack) -> Runner:
    """A callable that runs one forward pass on the inputs.

    Args:
        model: in eval mode, on the device where it shall run.
        inputs: on the same device.
        mode: how to run it.
        threads: of ONNX Runtime; PyTorch's are set by the caller.
        stack: keeps what must live as long as the runner.

    Raises:
        PruneError: the mode is not possible here; other exceptions of compilers and exporters pass through.
    """
    args, kwargs = as_arguments(inputs)
    if mode == "eager":
        return lambda: model(*args, **kwargs)
    if mode == "compiled":
        return _compiled(model, args, kwargs)
    return _onnx(model, inputs, threads, stack)


def failure_reason(error: Exception) -> str:
    """Why a mode could not be measured, in a line."""
    if isinstance(error, PruneError):
        return f"{error.what} ({error.fix})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.get_device_module(device.type).synchronize()


def peak_bytes(model: nn.Module, inputs: Any) -> int:
    """Bytes of the tensors that one forward pass makes, at their peak; weights and inputs are not counted.

    On CUDA the allocator is asked, scratch space included; elsewhere tensors are counted as operations make them.
    """
    args, kwargs = as_arguments(inputs)
    tensors = [*model.parameters(), *model.buffers(), *(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))]
    device = tensors[0].device if tensors else torch.device("cpu")
    with torch.no_grad():
        if device.type == "cuda":
            return _cuda_peak(lambda: model(*args, **kwargs), device)
        with _LiveBytes(tensors) as counter:
            model(*args, **kwargs)
    return counter.peak


def _cuda_peak(run: Runner, device: torch.device) -> int:
    # The first call loads kernels and chooses algorithms, which takes memory that later calls do not.
    run()
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) - before


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages from the operation that makes them until they are freed."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(Tensor, self._count, result)
        return result

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, size)
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def _compiled(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Runner:
    # Imported here because it takes a second that the other modes need not wait for.
    from torch._dynamo import config

    compiled = torch.compile(model, dynamic=False)
    with config.patch(recompile_limit=RECOMPILE_LIMIT), torch.no_grad():
        compiled(*args, **kwargs)
    return lambda: compiled(*args, **kwargs)


def _onnx(model: nn.Module, inputs: Any, threads: int, stack: ExitStack) -> Runner:
    args, kwargs = as_arguments(inputs)
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
    if any(t.device.type != "cpu" for t in tensors):
        raise ConfigError("onnx", "ONNX Runtime is measured on the CPU only", "move the models to the CPU")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    export_onnx(model, inputs, folder / "model.onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feed = {spec.name: t.detach().numpy() for spec, t in zip(session.get_inputs(), tensors, strict=True)}
    return lambda: session.run(None, feed)
