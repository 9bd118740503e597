"""Eight-bit ONNX: the grids that were learned, written down as QuantizeLinear and DequantizeLinear by ONNX Runtime.

The tool does the rewriting (`onnxruntime.quantization`); what it is told are the learned grids of the inputs. The
weights lie on their grids already, so that its own rounding leaves them where they are. Weights of 4 bits are stored as
such (INT4, since opset 21), on their own steps: an 8-bit grid with the same largest magnitude does not hold them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import ConfigError, ExportError, first_line
from prunus.files.atomic import StrPath, real_path, refusing, staging, write_bytes, write_new
from prunus.formats.onnx import MODULES, export_onnx, onnx_runtime
from prunus.formats.quiet import quiet
from prunus.formats.registry import Exportable, Exported, exporter
from prunus.formats.static_int8 import static_int8
from prunus.masks.activations import grids_of, quantized_inputs
from prunus.masks.file import LayerMask
from prunus.runtime.calling import outputs
from prunus.runtime.entry import entry

TOLERANCE = 0.02
INT4_OPSET = 21


@entry()
def export_onnx_int8(model: nn.Module, masks: Mapping[str, LayerMask], images: Tensor, path: StrPath) -> float:
    """Write ONNX whose masked layers compute with 8-bit inputs and weights of 8 bits, or stored in 4.

    Args:
        model: in its own class; its masked weights lie on grids.
        masks: with bits and input scales, as `compress` and `load_masks` give them.
        images: a batch to compare on, [B, ...], B at least 2, on the model's device.
        path: file to write; it appears only after it was found to agree.

    Returns:
        Mean difference between ONNX Runtime's outputs and those of the model with its inputs on their grids, relative
        to the mean magnitude of the outputs. Both round, so that a value on the edge may fall on either side.

    Raises:
        ConfigError: a layer without bits or input scale.
        MissingDependencyError: onnx or onnxruntime is not installed.
        ExportError: a layer is not in the graph as a convolution or matrix product of its own weight, or the file
            does not agree, or can't be written.
    """
    target = real_path(path)
    with refusing(target, ExportError):
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging(target.parent) as folder:
            data, difference = int8_bytes(model, masks, images, folder)
    write_bytes(path, data, ExportError)
    return difference


def int8_bytes(model: nn.Module, masks: Mapping[str, LayerMask], images: Tensor, folder: Path) -> tuple[bytes, float]:
    """What `export_onnx_int8` writes, and the difference that it returns; the tool needs a folder of its own for it."""
    for name, mask in masks.items():
        if mask.bits is None or mask.input_scale is None:
            what = f"weights of {mask.bits or 32} bits, inputs {'on a grid' if mask.input_scale else 'on none'}"
            advice = "train it with bits=8 (or 4, 2, 1) and activation_bits=8"
            raise ConfigError(f"layer {name!r}", f"{what} can't become 8-bit ONNX", advice)
    if not masks:
        raise ConfigError("masks", "no layer was quantised", "train with bits=8 and activation_bits=8")
    runtime = onnx_runtime()
    folder.mkdir()
    plain, small = folder / "plain.onnx", folder / "int8.onnx"
    export_onnx(model, images[:2], plain)
    _quantize(plain, small, masks, images)
    difference = _disagreement(runtime, small, model, masks, images)
    if not difference <= TOLERANCE:
        what = f"ONNX Runtime differs from the model by {difference:.1e} (mean)"
        raise ExportError("8-bit ONNX", what, "report it")
    return small.read_bytes(), difference


def holds_eight_bits(subject: Exportable) -> bool:
    """Whether every masked weight and what it is given lie on grids."""
    masks = subject.masks.values()
    return bool(masks) and all(m.bits is not None and m.input_scale is not None for m in masks)


@exporter(
    "int8",
    file="model_int8.onnx",
    help="8-bit ONNX, on the grids of training or else on such as examples give",
    check=onnx_runtime,
    suits=holds_eight_bits,
    modules=MODULES,
)
def write_int8(subject: Exportable, path: Path) -> Exported:
    """What `int8_bytes` makes, in a file; of a model without grids what `static_int8` makes."""
    if not subject.grids and not any(mask.bits is not None for mask in subject.masks.values()):
        with staging(path.parent) as scratch:
            made = static_int8(subject.model, () if subject.batch is None else subject.batch, scratch)
        write_new(path, made.data)
        return Exported(path, made.difference, made.told())
    images = subject.example_inputs if subject.batch is None else subject.batch
    if isinstance(images, tuple) and len(images) == 1:
        (images,) = images
    if not isinstance(images, Tensor):
        what = f"the model takes a {type(images).__name__}, and 8-bit ONNX is written for models of one tensor"
        raise ConfigError("export 'int8'", what, "export onnx")
    with staging(path.parent) as scratch:
        data, error = int8_bytes(subject.model, subject.masks, images, scratch)
    write_new(path, data)
    return Exported(path, error, f"8-bit ONNX agrees with the model on its grids: mean relative difference {error:.1e}")


def _quantize(plain: Path, small: Path, masks: Mapping[str, LayerMask], images: Tensor) -> None:
    import onnx
    import onnx.version_converter
    from onnxruntime import quantization

    if any(mask.bits == 4 for mask in masks.values()):
        onnx.save(onnx.version_converter.convert_version(onnx.load(plain), INT4_OPSET), plain)
    graph = onnx.load(plain).graph
    nodes = {n.input[1].removesuffix(".weight"): n for n in graph.node if len(n.input) > 1 and n.op_type in _PRODUCTS}
    missing = sorted(set(masks) - set(nodes))
    if missing:
        what = "the ONNX graph has no convolution or matrix product with its weight"
        raise ExportError(f"layer {missing[0]!r}", what, "export plain ONNX, or leave the layer without a pattern")
    grids: dict[str, list[dict[str, Any]]] = {}
    for name, mask in masks.items():
        assert mask.input_scale is not None
        own = {"scale": np.array(mask.input_scale, np.float32), "zero_point": np.array(0, np.int8)}
        before = grids.setdefault(nodes[name].input[0], [own])
        if before[0]["scale"] < own["scale"]:  # one tensor, several layers: the widest grid
            before[0] = own
        if mask.bits == 4:
            grids[nodes[name].input[1]] = _four_bits(graph, nodes[name], name)
    with quiet(), _refusals():
        quantization.quantize_static(
            plain,
            small,
            _Reader(graph.input[0].name, images[:2].cpu().numpy()),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=[nodes[name].name for name in masks],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "TensorQuantOverrides": grids,
                "OpTypesToExcludeOutputQuantization": list(_PRODUCTS),
            },
        )


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What the tool raises, as ours: releases before 1.24 can't pack the four bits of today's onnx."""
    try:
        yield
    except RuntimeError as error:
        what = f"ONNX Runtime's tool refuses the model: {first_line(error)}"
        raise ExportError("8-bit ONNX", what, "install a newer onnxruntime, or train with bits=8") from error


def _four_bits(graph: Any, node: Any, name: str) -> list[dict[str, Any]]:
    """The steps of a weight that lies on a 4-bit grid, one for each output channel."""
    from ml_dtypes import int4
    from onnx import numpy_helper
    from onnxruntime.quantization import QuantType

    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    if node.op_type != "Conv" and not transposed:
        raise ExportError(f"layer {name!r}", f"4 bits in a {node.op_type} have no export", "train it with bits=8")
    weight = numpy_helper.to_array(next(i for i in graph.initializer if i.name == node.input[1]))
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    steps = np.where(largest > 0, largest / 7, 1).astype(np.float32)
    own = [{"quant_type": QuantType.QInt4, "scale": np.array(s), "zero_point": np.array(0, int4)} for s in steps]
    own[0]["axis"] = 0
    return own


_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class _Reader:
    """The tool asks for examples even where every grid is given."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self.left: Iterator[dict[str, Any]] = iter([{name: images}])

    def get_next(self) -> dict[str, Any] | None:
        """The next feed, or None at the end."""
        return next(self.left, None)


def _disagreement(runtime: Any, file: Path, model: nn.Module, masks: Mapping[str, LayerMask], images: Tensor) -> float:
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.cpu().numpy()})[0])
    with quantized_inputs(model, grids_of(masks)):
        wanted = outputs(model, images)[0].cpu()
    return float((found - wanted).abs().mean() / wanted.abs().mean().clamp_min(1e-12))
