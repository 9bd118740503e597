"""Eight-bit inputs of layers while training and when judging: a grid that follows the largest magnitude seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
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


@contextmanager
def quantized_inputs(model: nn.Module, inputs: Mapping[str, QuantizedInput]) -> Iterator[None]:
    """Quantise what the named layers are given, within.

    Raises:
        ConfigError: the model has no such layer.
    """
    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for name, quantizer in inputs.items():
            if name not in modules:
                raise ConfigError(f"layer {name!r}", "the model has no layer of that name", "see `prunus analyze`")
            hooks.enter_context(modules[name].register_forward_pre_hook(_hook(quantizer, name), with_kwargs=True))
        yield


def _hook(quantizer: QuantizedInput, name: str) -> Any:
    def quantized(x: Tensor, training: bool) -> Tensor:
        quantizer.to(x.device).train(training)
        return quantizer(x)  # type: ignore[no-any-return]

    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return change_input(layer, name, args, kwargs, None, lambda x: quantized(x, layer.training))

    return before
