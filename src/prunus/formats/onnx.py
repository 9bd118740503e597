"""Files to deploy: ONNX and the exported program, both with a free batch size, both compared with the model."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from prunus.errors import ConfigError, ExportError, MissingDependencyError, first_line
from prunus.files.atomic import StrPath, write_bytes, write_new
from prunus.formats.plain_attention import plain_attention
from prunus.formats.registry import Exportable, Exported, exporter
from prunus.graph.capture import at_least_two, capture
from prunus.runtime.arguments import as_arguments
from prunus.runtime.calling import flat_outputs, outputs
from prunus.runtime.entry import entry
from prunus.runtime.extras import from_extra
from prunus.runtime.modes import eval_mode

TOLERANCE = 1e-3
MODULES = ("onnx", "onnxscript", "onnxruntime")


@entry()
def export_program(model: nn.Module, example_inputs: Any, path: StrPath, *, follow_branches: bool = False) -> Path:
    """Write the model as a `.pt2` program with a free batch size; branches as for `trace`.

    It is for other tools. Nothing here reads one: `torch.export.load` runs code of whoever made the file.

    Raises:
        TraceError: the model cannot be captured.
        ExportError: the file cannot be written.
    """
    return write_bytes(path, program_bytes(model, example_inputs, follow_branches=follow_branches), ExportError)


def program_bytes(model: nn.Module, example_inputs: Any, *, follow_branches: bool = False) -> bytes:
    """What `export_program` writes, made in memory: torch's own writer of files ends the process on a full disk."""
    return saved_program(capture(model, example_inputs, dynamic_batch=True, follow_branches=follow_branches), model)


def saved_program(program: torch.export.ExportedProgram, model: nn.Module) -> bytes:
    """A program of a model as `torch.export.save` writes it. Raises ExportError if it can't."""
    file = io.BytesIO()
    try:
        torch.export.save(program, file)
    except Exception as error:
        what = f"torch can't write its program: {first_line(error)}"
        raise ExportError(
            f"model {type(model).__name__}", what, "load the artifact with the model's factory"
        ) from error
    return file.getvalue()


@entry()
def export_onnx(model: nn.Module, example_inputs: Any, path: StrPath) -> float:
    """Write ONNX with a free batch size, run it in ONNX Runtime and compare with the model.

    Args:
        model: the model; exported in eval mode.
        example_inputs: inputs to export with.
        path: file to write; it appears only after it was found to agree.

    Returns:
        Largest difference between ONNX Runtime and PyTorch, relative to the largest output, over the example batch
        and a batch of another size.

    Raises:
        MissingDependencyError: onnx, onnxscript or onnxruntime is not installed.
        ExportError: the export fails or disagrees with the model, or the file can't be written.
    """
    data, error = onnx_bytes(model, example_inputs)
    write_bytes(path, data, ExportError)
    return error


def onnx_bytes(model: nn.Module, example_inputs: Any) -> tuple[bytes, float]:
    """What `export_onnx` writes, made and compared in memory, and the difference that it returns."""
    runtime = onnx_runtime()
    args, kwargs = as_arguments(example_inputs)
    tensors = [*args, *kwargs.values()]
    free: Any = tuple({0: Dim("batch")} if isinstance(a, Tensor) else None for a in args)
    shapes = {k: {0: Dim("batch")} for k in kwargs} if kwargs else free
    where, example = f"ONNX of {type(model).__name__}", at_least_two(example_inputs)
    try:
        data = _exported(model, example, shapes)
        session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
        error = max(_disagreement(session, model, i) for i in (example, _three_times(example)))
        if not error <= TOLERANCE:
            raise ExportError(where, f"ONNX Runtime differs from the model by {error:.1e} (relative)", "report it")
    except (ExportError, MissingDependencyError):
        raise
    except Exception as failure:
        lines = re.sub(r"\x1b\[[0-9;]*m", "", str(failure)).strip().splitlines() or [""]  # the exporter's colours
        raise ExportError(
            where,
            f"ONNX export failed for inputs {[tuple(t.shape) for t in tensors if isinstance(t, Tensor)]}: "
            f"{type(failure).__name__}: {lines[0][:300]}",
            "export a .pt2 program instead, or report the model",
        ) from failure
    return data, error


def _exported(model: nn.Module, example_inputs: Any, shapes: Any) -> bytes:
    """The file's bytes, with attention in elementary operations if the exporter can't take the fused one."""
    args, kwargs = as_arguments(example_inputs)

    def exported() -> bytes:
        with eval_mode(model), _quiet():
            program = torch.onnx.export(
                model, args, kwargs=kwargs or None, dynamo=True, dynamic_shapes=shapes, verbose=False
            )
            assert program is not None
            return program.model_proto.SerializeToString()

    try:
        return exported()
    except torch.onnx.OnnxExporterError as failure:
        try:
            with plain_attention(model):
                return exported()
        except torch.onnx.OnnxExporterError:
            raise failure from None


def onnx_runtime() -> Any:
    """The module `onnxruntime`. Raises MissingDependencyError if it, onnx or onnxscript is not installed."""
    _, _, runtime = (from_extra(name, "onnx", "ONNX export") for name in MODULES)
    return runtime


def refuse_grids(subject: Exportable, name: str) -> None:
    """Raise ConfigError where inputs of layers lie on grids that are not in the model: it would be another network."""
    if subject.grids:
        what = f"the inputs of {', '.join(subject.grids[:3])} lie on grids, without which it would be another network"
        raise ConfigError(f"export {name!r}", what, "export int8, or train without activation_bits")


@exporter(
    "onnx",
    file="model.onnx",
    help="ONNX with a free batch size, compared with the model in ONNX Runtime",
    check=onnx_runtime,
    suits=lambda subject: not subject.grids,
    modules=MODULES,
)
def write_onnx(subject: Exportable, path: Path) -> Exported:
    """What `onnx_bytes` makes, in a file. Raises ConfigError for a model that is another one without its grids."""
    refuse_grids(subject, "onnx")
    data, error = onnx_bytes(subject.model, subject.example_inputs)
    write_new(path, data)
    dense = "; its masked weights are dense, with their zeros: ONNX has no condensed layers" if subject.masks else ""
    return Exported(path, error, f"ONNX agrees with PyTorch: largest relative difference {error:.1e}{dense}")


@exporter("pt2", file="model.pt2", help="a program of torch.export for other tools, with a free batch size")
def write_program(subject: Exportable, path: Path) -> Exported:
    """What `program_bytes` makes, in a file. Raises ConfigError for a model that is another one without its grids."""
    refuse_grids(subject, "pt2")
    follow = subject.plan is not None and subject.plan.followed
    write_new(path, program_bytes(subject.model, subject.example_inputs, follow_branches=follow))
    return Exported(path, None, "a program for torch.export.load")


def _disagreement(session: Any, model: nn.Module, inputs: Any) -> float:
    args, kwargs = as_arguments(inputs)
    values = [t.detach().cpu().numpy() for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
    feed = {spec.name: value for spec, value in zip(session.get_inputs(), values, strict=True)}
    found = [torch.from_numpy(v) for v in session.run(None, feed)]
    worst = 0.0
    for a, b in zip(outputs(model, inputs), flat_outputs(found), strict=True):
        worst = max(worst, float((a.cpu() - b).abs().max() / a.abs().max().clamp_min(1e-6)))
    return worst


def _three_times(inputs: Any) -> Any:
    return _map(inputs, lambda t: torch.cat([t, t.flip(0), t]) if t.dim() else t)


def _map(inputs: Any, change: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, change, inputs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns about its own internals; the result is checked here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
