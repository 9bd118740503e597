"""Eight-bit inputs of layers while training and when judging: a grid that follows the largest magnitude seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.errors import ConfigError
from prunus.masks.file import LayerMask
from prunus.masks.quantize import on_grid
from prunus.runtime.arguments import change_input

MOMENTUM = 0.05
"""Share of the newest batch in the running maximum."""


class QuantizedInput(nn.Module):
    """What a layer is given, on a symmetric grid of `bits` bits for the whole tensor.

    Attributes:
        largest: running maximum of |x|, fp32 scalar; 0 before anything was seen. Training moves it, eval mode doesn't.
        bits: of the grid.
    """

    largest: Tensor

    def __init__(self, bits: int = 8, largest: float = 0.0) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("largest", torch.tensor(float(largest), dtype=torch.float32))

    @property
    def scale(self) -> float:
        """Step of the grid."""
        return float(self.largest) / (2 ** (self.bits - 1) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """The same tensor on the grid; the gradient passes where |x| is within it."""
        if self.training:
            seen = x.detach().abs().amax().float()
            self.largest.copy_(torch.where(self.largest > 0, self.largest.lerp(seen, MOMENTUM), seen))
        found = _Rounded.apply(x, self.largest, self.bits)
        assert isinstance(found, Tensor)
        return found


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, largest: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x.abs() <= largest)
        step = (largest / (2 ** (bits - 1) - 1)).clamp_min(torch.finfo(torch.float32).tiny)
        return (on_grid(x.float(), step, bits) * step).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (within,) = ctx.saved_tensors
        return gradients[0] * within, None, None


def grids_of(masks: Mapping[str, LayerMask]) -> dict[str, QuantizedInput]:
    """The grids of inputs that stored masks tell of, by layer; none for layers that take their inputs as they are."""
    scales = {name: mask.input_scale for name, mask in masks.items()}
    return {name: QuantizedInput(8, 127 * scale) for name, scale in scales.items() if scale is not None}


@contextmanager
def quantized_inputs(model: nn.Module, inputs: Mapping[str, QuantizedInput]) -> Iterator[None]:
    """Quantise what the named layers are given, within: layers that are called, and those of captured graphs.

    Raises:
        ConfigError: the model has no such layer; or its call finds none in the graph with that weight.
    """
    modules = dict(model.named_modules())
    held: dict[str, tuple[Tensor | None, QuantizedInput]] = {}
    with ExitStack() as hooks:
        for name, quantizer in inputs.items():
            if name not in modules:
                raise ConfigError(f"layer {name!r}", "the model has no layer of that name", "see `prunus analyze`")
            if type(modules[name]) is nn.Module:  # a captured graph's: it holds the weight and is never called
                held[name] = (getattr(modules[name], "weight", None), quantizer)
            else:
                hooks.enter_context(modules[name].register_forward_pre_hook(_hook(quantizer, name), with_kwargs=True))
        if held:
            watch = hooks.enter_context(_AtWeights(model, held))
            hooks.enter_context(model.register_forward_hook(lambda *_: watch.check()))
        yield


class _AtWeights(TorchFunctionMode):
    """Quantises what is multiplied with these weights, which a captured graph hands to torch's operations itself."""

    def __init__(self, model: nn.Module, held: Mapping[str, tuple[Tensor | None, QuantizedInput]]) -> None:
        super().__init__()
        self.model, self.held, self.met = model, held, set[str]()
        self.by_weight = {id(w): (name, quantizer) for name, (w, quantizer) in held.items() if w is not None}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, quantizer = self.by_weight.get(id(args[1]), ("", None)) if len(args) > 1 else ("", None)
        if quantizer is not None:
            self.met.add(name)
            args = (quantizer.to(args[0].device).train(self.model.training)(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))

    def check(self) -> None:
        """Raise ConfigError if a weight was met nowhere since the context began."""
        for name in self.held.keys() - self.met:
            what = "the captured graph multiplies nothing with its weight, so that its input has no grid"
            raise ConfigError(f"layer {name!r}", what, "load it into its own class: prunus.load(folder, factory)")


def _hook(quantizer: QuantizedInput, name: str) -> Any:
    def quantized(x: Tensor, training: bool) -> Tensor:
        quantizer.to(x.device).train(training)
        return quantizer(x)  # type: ignore[no-any-return]

    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return change_input(layer, name, args, kwargs, None, lambda x: quantized(x, layer.training))

    return before
