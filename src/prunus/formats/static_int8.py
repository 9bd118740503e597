"""Eight-bit ONNX after training: grids of weights and activations found on examples, by ONNX Runtime's own tool.

What was trained on grids keeps those (`int8.py`); everything else can be finished here. Half of the examples find the
grids, the other half says what the file computes, and it is timed beside the fp32 file.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunus.errors import ConfigError, ExportError, first_line
from prunus.formats.onnx import export_onnx, onnx_runtime
from prunus.formats.quiet import quiet
from prunus.runtime.arguments import as_arguments, examples_in, tensors_in
from prunus.runtime.timing import interleaved

LEAST, AT_ONCE = 8, 8
"""Examples that are needed at least; and fed to the tool at once."""
USELESS = 0.5
"""Mean difference from fp32, relative to the outputs, from which the file is another network."""
REPEATS, WARMUP = 15, 3


@dataclass(frozen=True)
class Quantised:
    """What the tool made.

    Attributes:
        data: the ONNX file.
        difference: mean difference of the outputs from those of the fp32 file, relative to their mean magnitude, on
            the examples that found no grids.
        same: how many of these have the same largest output; None where outputs are no classes.
        examples: how many these are.
        ratio: time of the 8-bit file / time of the fp32 file, medians, in ONNX Runtime on this processor.
        smaller: size of the 8-bit file / size of the fp32 file.
    """

    data: bytes
    difference: float
    same: int | None
    examples: int
    ratio: float
    smaller: float

    def told(self) -> str:
        """One line for the user."""
        alike = "" if self.same is None else f", the same answer on {self.same} of {self.examples}"
        time = f"{self.ratio:.2f} of the time and {self.smaller:.2f} of the size of fp32 here"
        return f"8-bit ONNX: {100 * self.difference:.1f} % from fp32{alike} held-out examples; {time}"


def static_int8(model: nn.Module, batch: Any, folder: Path) -> Quantised:
    """Quantise a model to 8 bits, weights per channel and activations per tensor.

    Args:
        model: in eval mode or not; exported in eval mode.
        batch: examples as the model gets them, 8 at least: a tensor, a tuple of arguments or a dict of keyword ones.
        folder: a new folder for the tool's files.

    Raises:
        ConfigError: too few examples.
        MissingDependencyError: onnx or onnxruntime is not installed.
        ExportError: the tool fails, or the file computes something else.
    """
    there = examples_in(batch, none=0)
    if there < LEAST:
        what = f"the grids of activations are found on examples, and there are {there} of the {LEAST} that are needed"
        raise ConfigError("export 'int8'", what, "give data: --data, or calibration= in Python")
    runtime = onnx_runtime()
    half = there // 2
    found, held_out = (_rows(batch, there, rows) for rows in (slice(None, half), slice(half, None)))
    folder.mkdir()
    plain, small = folder / "plain.onnx", folder / "int8.onnx"
    export_onnx(model, _rows(batch, there, slice(None, 2)), plain)
    _quantise(plain, small, found, half)
    sessions = [_session(runtime, file) for file in (plain, small)]
    feed = dict(zip((i.name for i in sessions[0].get_inputs()), _arrays(held_out), strict=True))
    wanted, made = (session.run(None, feed)[0] for session in sessions)
    difference = float(np.abs(made - wanted).mean() / max(np.abs(wanted).mean(), 1e-12))
    if not difference <= USELESS:
        what = f"its outputs differ from fp32 by {100 * difference:.0f} % (mean): it is another network"
        raise ExportError("8-bit ONNX", what, "train on grids (--method dpp --set bits=8), or keep fp32 ONNX")
    classes = wanted.ndim == 2 and wanted.shape[1] > 1
    same = int((made.argmax(1) == wanted.argmax(1)).sum()) if classes else None
    runs = [lambda s=session: s.run(None, feed) for session in sessions]
    times = interleaved(runs[0], runs[1], REPEATS, WARMUP, lambda: None)
    ratio = statistics.median(times[1]) / statistics.median(times[0])
    smaller = small.stat().st_size / plain.stat().st_size
    return Quantised(small.read_bytes(), difference, same, there - half, ratio, smaller)


def _quantise(plain: Path, small: Path, batch: Any, count: int) -> None:
    from onnxruntime import quantization

    session_inputs = _names(plain)
    try:
        with quiet():
            quantization.quantize_static(
                plain,
                small,
                _Examples(session_inputs, batch, count),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
            )
    except Exception as error:
        raise ExportError("8-bit ONNX", f"the tool fails: {first_line(error)}", "keep fp32 ONNX") from error


class _Examples:
    """Examples as the tool asks for them, a few at once."""

    def __init__(self, names: list[str], batch: Any, count: int) -> None:
        parts = (_rows(batch, count, slice(i, i + AT_ONCE)) for i in range(0, count, AT_ONCE))
        self.left: Iterator[dict[str, Any]] = (dict(zip(names, _arrays(part), strict=True)) for part in parts)

    def get_next(self) -> dict[str, Any] | None:
        """The next feed, or None at the end."""
        return next(self.left, None)


def _names(file: Path) -> list[str]:
    import onnx

    graph = onnx.load(file).graph
    return [i.name for i in graph.input]


def _session(runtime: Any, file: Path) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _arrays(inputs: Any) -> list[Any]:
    return [t.detach().cpu().numpy() for t in tensors_in(as_arguments(inputs))]


def _rows(batch: Any, size: int, rows: slice) -> Any:
    return tree_map_only(Tensor, lambda t: t[rows] if t.dim() and t.shape[0] == size else t, batch)
