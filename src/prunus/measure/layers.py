"""The layers of a network as they can be timed by themselves: kind, sizes, and the same layer with other widths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.graph.grouping import Graph
from prunus.layers.submodules import is_conv1d
from prunus.measure.runtimes import of_onnx
from prunus.plan.setup import Setup
from prunus.runtime.arguments import as_arguments, first_tensor
from prunus.runtime.extras import from_extra
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import dtype_name
from prunus.runtime.timing import Run

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer and the size of its input.

    Attributes:
        kind: `conv`, `transposed`, `linear`, or `linear_t` with its weight as [inputs, outputs].
        weight: sizes of the weight.
        input: of the input, batch first.
        stride: of a convolution, by dimension; empty for a linear layer.
        padding: by dimension.
        dilation: by dimension.
        groups: 1 for a layer that is not grouped.
        dtype: of weight and input.
    """

    kind: str
    weight: tuple[int, ...]
    input: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    dtype: str = "float32"

    @property
    def output(self) -> int:
        """Elements of the output, at the dense widths, without one dimension's padding for transposed layers."""
        if self.kind.startswith("linear"):
            return int(np.prod(self.input[:-1])) * self.weight[self.kind == "linear_t"]
        kernel = self.weight[2:]
        sizes = zip(self.input[2:], kernel, self.stride, self.padding, self.dilation, strict=True)
        if self.kind == "conv":
            spatial = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
        else:
            spatial = [(n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in sizes]
        channels = self.weight[0] if self.kind == "conv" else self.weight[1] * self.groups
        return int(self.input[0] * channels * np.prod(spatial))

    def at(self, first: int, second: int) -> Layer:
        """The same layer whose weight is [first, second, ...]; groups go along with the dimension that holds them."""
        groups = self.groups
        if groups > 1:
            groups = max(1, round(groups * first / self.weight[0]))
            first = -(-first // groups) * groups
        across = second if self.kind in ("linear", "conv") else first
        channels = across * groups if self.kind == "conv" else across
        sizes = (
            (*self.input[:-1], channels)
            if self.kind.startswith("linear")
            else (self.input[0], channels, *self.input[2:])
        )
        return replace(self, weight=(first, second, *self.weight[2:]), input=sizes, groups=groups)

    def module(self) -> nn.Module:
        """A layer of PyTorch's with these sizes."""
        first, second, *sizes = self.weight
        kernel: Any = tuple(sizes)
        dtype = getattr(torch, self.dtype)
        if self.kind.startswith("linear"):
            sides = (second, first) if self.kind == "linear" else (first, second)
            return nn.Linear(*sides, dtype=dtype)
        settings: dict[str, Any] = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }
        if self.kind == "conv":
            return CONVOLUTIONS[len(kernel)](second * self.groups, first, kernel, dtype=dtype, **settings)
        return TRANSPOSED[len(kernel)](first, second * self.groups, kernel, dtype=dtype, **settings)


def layers_of(model: nn.Module, graph: Graph, inputs: Any) -> dict[str, Layer | None]:
    """The layer of each of the graph's contractions, by the name of its weight; None where it is none of PyTorch's.

    Args:
        model: the network.
        graph: its analysis.
        inputs: of the batch size that is asked for.
    """
    names = dict.fromkeys(call.module for call in graph.contractions)
    modules = {name: model.get_submodule(name) for name in names}
    seen: dict[str, tuple[int, ...]] = {}

    def look(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensor = first_tensor(module, args, kwargs)
        if tensor is not None:
            seen.setdefault(name, tuple(tensor.shape))

    hooks = [
        module.register_forward_pre_hook(lambda m, a, k, name=name: look(name, m, a, k), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        args, kwargs = as_arguments(inputs, model)
        with eval_mode(model), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    kinds = {name: _layer(module, seen.get(name)) for name, module in modules.items()}
    return {
        call.weight: kinds[call.module] if call.weight in (f"{call.module}.weight", "weight") else None
        for call in graph.contractions
    }


def _layer(module: nn.Module, shape: tuple[int, ...] | None) -> Layer | None:
    weight = getattr(module, "weight", None)
    if shape is None or not isinstance(weight, Tensor):
        return None
    sizes, dtype = tuple(weight.shape), dtype_name(weight.dtype)
    if isinstance(module, nn.Linear):
        return Layer("linear", sizes, shape, dtype=dtype)
    if is_conv1d(module):
        return Layer("linear_t", sizes, shape, dtype=dtype)
    plain = (*CONVOLUTIONS.values(), *TRANSPOSED.values())
    layer: Any = module
    if not isinstance(module, plain) or isinstance(layer.padding, str) or len(shape) != len(sizes):
        return None
    kind = "transposed" if layer.transposed else "conv"
    return Layer(kind, sizes, shape, layer.stride, layer.padding, layer.dilation, layer.groups, dtype)


def layer_run(layer: Layer, setup: Setup, device: torch.device) -> Run:
    """One pass of a layer, of random weights, as a function; compiled ones run eager, by the same kernels."""
    if setup.runtime in ("eager", "compiled"):
        module = layer.module().to(device).eval()
        x = torch.randn(layer.input, dtype=getattr(torch, layer.dtype), device=device)
        return lambda: module(x)
    values = np.random.default_rng(0).standard_normal(layer.input).astype(np.float32)
    return of_onnx(setup.runtime, _onnx(layer), [values], threads=setup.threads)


def _onnx(layer: Layer) -> bytes:
    onnx = from_extra("onnx", "onnx", "timing of layers")
    make, number = onnx.helper, onnx.TensorProto.FLOAT
    generator = np.random.default_rng(0)
    weight = generator.standard_normal(layer.weight).astype(np.float32)
    outputs = layer.weight[0] if layer.kind in ("conv", "linear") else layer.weight[1] * layer.groups
    bias = np.zeros(outputs, np.float32)
    if layer.kind.startswith("linear"):
        weight = np.ascontiguousarray(weight.T) if layer.kind == "linear" else weight
        nodes = [make.make_node("MatMul", ["x", "w"], ["m"]), make.make_node("Add", ["m", "b"], ["y"])]
    else:
        nodes = [
            make.make_node(
                "Conv" if layer.kind == "conv" else "ConvTranspose", ["x", "w", "b"], ["y"],
                kernel_shape=layer.weight[2:], strides=layer.stride, pads=[*layer.padding, *layer.padding],
                dilations=layer.dilation, group=layer.groups,
            )
        ]  # fmt: skip
    held = [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(bias, "b")]
    given, made = (make.make_tensor_value_info(n, number, s) for n, s in (("x", layer.input), ("y", None)))
    model = make.make_model(
        make.make_graph(nodes, "layer", [given], [made], held), opset_imports=[make.make_opsetid("", 18)], ir_version=9
    )
    data: bytes = model.SerializeToString()
    return data
