"""Files to deploy: ONNX and the exported program, both with a free batch size, both compared with the model."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from prunus.errors import ArtifactError, ExportError, MissingDependencyError
from prunus.graph.capture import as_arguments, at_least_two, capture
from prunus.modes import eval_mode
from prunus.plain_attention import plain_attention
from prunus.rewrite import as_module
from prunus.verify import flat_outputs, outputs

TOLERANCE = 1e-3


def export_program(
    model: nn.Module, example_inputs: Any, path: str | os.PathLike[str], *, follow_branches: bool = False
) -> Path:
    """Write the model as a `.pt2` program with a free batch size; branches as for `trace`.

    Raises:
        TraceError: the model cannot be captured.
        ExportError: the file cannot be written.
    """
    program = capture(model, example_inputs, dynamic_batch=True, follow_branches=follow_branches)
    target = Path(path)
    temporary = target.with_name(target.stem + ".part.pt2")
    try:
        torch.export.save(program, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise ExportError(
            str(target), f"cannot be written: {error}", "free the disk or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def load_program(path: str | os.PathLike[str]) -> nn.Module:
    """The module of a `.pt2` program, in eval mode; trainable, with the model's parameter names.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise ArtifactError(str(path), f"the program cannot be read: {error}", "copy the artifact again") from error
    return as_module(program).eval()


def export_onnx(model: nn.Module, example_inputs: Any, path: str | os.PathLike[str]) -> float:
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
        ExportError: the export fails or disagrees with the model.
    """
    runtime = onnx_runtime()
    args, kwargs = as_arguments(example_inputs)
    tensors = [*args, *kwargs.values()]
    free: Any = tuple({0: Dim("batch")} if isinstance(a, Tensor) else None for a in args)
    shapes = {k: {0: Dim("batch")} for k in kwargs} if kwargs else free
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    example = at_least_two(example_inputs)
    try:
        _write_onnx(model, example, shapes, temporary)
        session = runtime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        error = max(_disagreement(session, model, i) for i in (example, _three_times(example)))
        if not error <= TOLERANCE:
            raise ExportError(
                str(target), f"ONNX Runtime differs from the model by {error:.1e} (relative)", "report the model"
            )
        os.replace(temporary, target)
    except (ExportError, MissingDependencyError):
        raise
    except Exception as failure:
        lines = re.sub(r"\x1b\[[0-9;]*m", "", str(failure)).strip().splitlines() or [""]  # the exporter's colours
        raise ExportError(
            str(target),
            f"ONNX export failed for inputs {[tuple(t.shape) for t in tensors if isinstance(t, Tensor)]}: "
            f"{type(failure).__name__}: {lines[0][:300]}",
            "export a .pt2 program instead, or report the model",
        ) from failure
    finally:
        temporary.unlink(missing_ok=True)
    return error


def _write_onnx(model: nn.Module, example_inputs: Any, shapes: Any, path: Path) -> None:
    """Write the file, with attention in elementary operations if the exporter can't take the fused one."""
    args, kwargs = as_arguments(example_inputs)

    def write() -> None:
        with eval_mode(model), _quiet():
            torch.onnx.export(
                model,
                args,
                path,
                kwargs=kwargs or None,
                dynamo=True,
                dynamic_shapes=shapes,
                external_data=False,
                verbose=False,
            )

    try:
        write()
    except torch.onnx.OnnxExporterError as failure:
        try:
            with plain_attention(model):
                write()
        except torch.onnx.OnnxExporterError:
            raise failure from None


def onnx_runtime() -> Any:
    """The module `onnxruntime`. Raises MissingDependencyError if it, onnx or onnxscript is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "ONNX export", f"{error.name} is not installed", "pip install 'prunus[onnx]'"
        ) from error
    return onnxruntime


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
