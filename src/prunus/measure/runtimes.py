"""Ways to run a network: eager, compiled, ONNX Runtime, OpenVINO. Each makes one pass out of a model and its inputs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from prunus.errors import ConfigError
from prunus.formats.onnx import onnx_bytes, onnx_runtime
from prunus.plan.setup import RUNTIMES, Runtime
from prunus.runtime.arguments import as_arguments, tensors_in
from prunus.runtime.extras import from_extra
from prunus.runtime.processes import model_device
from prunus.runtime.timing import Run


def check_runtime(runtime: str) -> None:
    """Refuse what can't run here.

    Raises:
        ConfigError: there is no such runtime.
        MissingDependencyError: it is not installed.
    """
    if runtime not in RUNTIMES:
        raise ConfigError(f"runtime {runtime!r}", "unknown", f"choose from {', '.join(RUNTIMES)}")
    if runtime in ("onnx", "openvino"):
        onnx_runtime()
    if runtime == "openvino":
        _openvino()


def runner(runtime: Runtime, model: nn.Module, inputs: Any, *, threads: int) -> Run:
    """One pass of a model in eval mode, as a function.

    Args:
        runtime: in what; `onnx` and `openvino` run on the CPU wherever the model lies.
        model: run as it is (set eval mode and no_grad around it).
        inputs: on the model's device.
        threads: of ONNX Runtime and OpenVINO; PyTorch runs with those it has, see `cores`.

    Raises:
        PruneError: it can't be exported, or the runtime is not installed.
    """
    args, kwargs = as_arguments(inputs, model)
    if runtime == "eager":
        return lambda: model(*args, **kwargs)
    if runtime == "compiled":
        compiled = torch.compile(model, dynamic=False)
        compiled(*args, **kwargs)
        return lambda: compiled(*args, **kwargs)
    values = [t.detach().cpu().numpy() for t in tensors_in((args, kwargs))]
    return of_onnx(runtime, onnx_bytes(model, inputs)[0], values, threads=threads)


def of_onnx(runtime: Runtime, data: bytes, values: list[Any], *, threads: int) -> Run:
    """One pass of an ONNX file in ONNX Runtime or OpenVINO.

    Args:
        runtime: `onnx` or `openvino`.
        data: the file.
        values: its inputs in their order, arrays.
        threads: cores that one pass may use.
    """
    if runtime == "openvino":
        core = _openvino().Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = core.compile_model(core.read_model(data, b""), "CPU", settings).create_infer_request()
        return lambda: request.infer(values, share_inputs=True)
    runtime_ = onnx_runtime()
    options = runtime_.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Threads of one session that wait for work would take the cores from the other one.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session: Any = runtime_.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feed = {spec.name: value for spec, value in zip(session.get_inputs(), values, strict=True)}
    return lambda: session.run(None, feed)


@contextlib.contextmanager
def cores(number: int) -> Iterator[None]:
    """PyTorch runs on so many cores within."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def clock_for(model: nn.Module, threads: int, runtime: Runtime = "eager") -> Callable[[], float]:
    """Seconds: of the processor where one core does the work, since others use the machine too; else of the wall."""
    on_cpu = model_device(model).type == "cpu" or runtime in ("onnx", "openvino")
    return time.process_time if threads == 1 and on_cpu else time.perf_counter


def _openvino() -> Any:
    return from_extra("openvino", "openvino", "timing in OpenVINO")


def version_of(runtime: Runtime) -> str:
    """Name and version of a runtime, as tables of its times are told apart. Raises MissingDependencyError."""
    if runtime in ("eager", "compiled"):
        return f"PyTorch {torch.__version__}"
    found = onnx_runtime() if runtime == "onnx" else _openvino()
    return f"{'ONNX Runtime' if runtime == 'onnx' else 'OpenVINO'} {found.__version__}"
