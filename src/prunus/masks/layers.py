"""Masks on weights of the user's own module: attached for training, taken off without a trace, or made permanent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus.errors import ConfigError
from prunus.kernels import masks as kernels
from prunus.masks.patterns import Layer, Layout, takes_pattern
from prunus.masks.quantize import Bits, Scheme, quantized
from prunus.masks.sampling import Order, gumbel, largest, perturb, vector_jacobian
from prunus.runtime.oldnames import OldNames, old_functions, warn_of_old

Mode = Literal["sample", "likeliest", "fixed"]

if not TYPE_CHECKING:  # a type checker would let every misspelt name pass
    __getattr__ = old_functions(__name__, {"attach": "masked_weights", "bake_": "make_permanent_"})


class MaskedWeight(nn.Module):
    """A weight's mask: exactly k of n in every row, drawn anew (or not) whenever the weight is used.

    With `resample_every` above 1 a drawn mask serves so many uses, and the logits learn from the first of them.

    Attributes:
        logits: fp32 [R, n], learned.
        fixed: bool [R, n], the mask of mode `fixed`.
        mode: `sample` draws, `likeliest` takes the k largest logits, `fixed` uses `fixed`; in eval mode none is drawn.
    """

    fixed: Tensor

    def __init__(
        self,
        layout: Layout,
        logits: Tensor,
        *,
        seed: int = 0,
        order: Order = "draw",
        resample_every: int = 1,
        bits: Bits | None = None,
        per_channel: bool = True,
        scheme: Scheme = "symmetric",
    ) -> None:
        super().__init__()
        self.layout, self.seed, self.order, self.resample_every = layout, seed, order, resample_every
        self.bits, self.per_channel, self.scheme = bits, per_channel, scheme
        self.logits = nn.Parameter(logits.float())
        self.register_buffer("fixed", largest(logits.float(), layout.k))
        self.mode: Mode = "sample"
        self.temperature, self.noise_scale = 1.0, 1.0
        self.uses = 0
        self._mask: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight, on its grid if `bits` are asked; its gradient reaches the logits unless they are fixed."""
        if self.mode == "fixed":
            return self.on_grid(_times(weight, self.fixed, self.layout))
        # Outside of torch.compile the way around it would cost as much as a small layer's product.
        if torch.compiler.is_compiling():
            from prunus.masks.eager import eagerly

            return self.on_grid(eagerly(self.drawn, weight))
        return self.on_grid(self.drawn(weight))

    def on_grid(self, weight: Tensor) -> Tensor:
        """The weight on its grid if `bits` are asked, else as it is."""
        if self.bits is None:
            return weight
        form = self.layout.form  # output channels first, in transposed convolutions too
        return form.weight(quantized(form.rows(weight), self.bits, per_channel=self.per_channel, scheme=self.scheme))

    def drawn(self, weight: Tensor) -> Tensor:
        """The weight with this pass's mask."""
        sampling, seed = self.mode == "sample" and self.training, None
        if sampling:
            # A counter, not a running generator: every rank draws the same, a resumed run what an unbroken one does.
            draw, again = divmod(self.uses, self.resample_every)
            self.uses += 1
            if again and self._mask is not None:
                return _times(weight, self._mask, self.layout)
            seed = self.seed, draw
        wanted = sampling and self.resample_every > 1
        settings = self.layout, self.noise_scale, self.temperature, self.order, wanted
        found = _Masked.apply(weight, self.logits, seed, *settings)
        assert isinstance(found, tuple)
        self._mask = found[1].to(weight.dtype) if wanted else None
        return found[0]

    def freeze_(self, mask: Tensor | None = None) -> None:
        """Fix a mask (the most probable one if none is given); from now on nothing is drawn."""
        self.fixed.copy_(largest(self.logits.detach(), self.layout.k) if mask is None else mask)
        self.mode = "fixed"

    def settle_(self, mask: Tensor | None = None) -> None:
        """The old name of `freeze_`."""
        warn_of_old("MaskedWeight.settle_", "freeze_", stacklevel=3)
        self.freeze_(mask)


class _Masked(torch.autograd.Function):
    """weight * mask, and the mask if wanted, in one: neither the mask as numbers nor its gradient outlives a pass."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, logits: Tensor, seed: tuple[int, int] | None, layout: Layout,
        noise_scale: float, temperature: float, order: Order, wanted: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        ctx.settings, ctx.listed = (layout, temperature, order), False
        ctx.set_materialize_grads(False)  # else zeros are made for the mask
        if seed is not None and _in_one_pass(layout, weight, logits):
            by_draw = order == "draw" if all(ctx.needs_input_grad[:2]) else None
            ctx.listed = by_draw is not None
            found = kernels.draw(
                logits, weight, seed, noise_scale, layout.k, by_draw=by_draw, with_mask=wanted or not ctx.listed
            )
            if found is not None:
                perturbed, chosen, masked, drawn = found
                ctx.save_for_backward(weight, perturbed, drawn if ctx.listed else chosen)
                return masked, _aside(ctx, chosen, wanted)
            ctx.listed = False
        noise = None if seed is None else gumbel(layout.rows, layout.n, seed, logits.device)
        perturbed = perturb(logits, noise, noise_scale)
        mask = largest(perturbed, layout.k)
        ctx.save_for_backward(weight, perturbed, mask)
        return _times(weight, mask, layout), _aside(ctx, mask, wanted)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, perturbed, chosen = ctx.saved_tensors
        layout, temperature, order = ctx.settings
        gradient, rest = gradients[0], (None,) * 6
        if gradient is None:  # the masked weight played no part
            return None, None, *rest
        if ctx.listed and _in_one_pass(layout, gradient):
            found = kernels.gradients(perturbed, chosen, weight, gradient, temperature)
            if found is not None:
                return found[1], found[0], *rest
        mask = chosen
        if ctx.listed:
            mask = torch.zeros_like(perturbed, dtype=torch.bool).scatter_(1, chosen.long(), True)
        for_weight = _times(gradient, mask, layout) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return for_weight, None, *rest
        by_mask = layout.rows_of(layout.form.rows((gradient * weight).to(perturbed.dtype)))
        return for_weight, vector_jacobian(perturbed, mask, by_mask, layout.k, temperature, order), *rest


def _aside(ctx: Any, mask: Tensor | None, wanted: bool) -> Tensor | None:
    """The mask as an output without a gradient, if it is wanted."""
    if mask is None or not wanted:
        return None
    ctx.mark_non_differentiable(mask)
    return mask


def _times(weight: Tensor, mask: Tensor, layout: Layout) -> Tensor:
    """The masked weight; the mask as numbers: a product of numbers and truth values is several times slower."""
    return weight * layout.on_weight(mask.to(weight.dtype))


def _in_one_pass(layout: Layout, *tensors: Tensor) -> bool:
    """Whether the compiled loops over rows of the weight's own memory serve."""
    for t in tensors:
        if not t.is_cpu or t.dtype != torch.float32 or not t.is_contiguous():
            return False
    return layout.direct and layout.k < layout.n and kernels.available()


class MaskSet(OldNames):
    """The masks on a model's layers, by layer name."""

    renamed: ClassVar[Mapping[str, str]] = {"settle_": "freeze_"}

    def __init__(self, masks: Mapping[str, MaskedWeight]) -> None:
        self.masks = dict(masks)

    def logits(self) -> list[nn.Parameter]:
        """The parameters that the masks learn."""
        return [m.logits for m in self.masks.values()]

    def schedule_(self, temperature: float, noise_scale: float) -> None:
        """Set the temperature of the relaxation and the scale of the noise everywhere."""
        for mask in self.masks.values():
            mask.temperature, mask.noise_scale = temperature, noise_scale

    def mode_(self, mode: Mode) -> None:
        """Draw, take the likeliest masks, or use the fixed ones."""
        for mask in self.masks.values():
            mask.mode = mode

    def freeze_(self, masks: Mapping[str, Tensor] | None = None) -> None:
        """Fix the given masks, or the most probable ones."""
        for name, mask in self.masks.items():
            mask.freeze_(None if masks is None else masks[name])

    def state_dict(self) -> dict[str, Any]:
        """How often each mask was used, and the one that serves several uses; tensors are the model's."""
        return {n: {"uses": m.uses, "mask": m._mask} for n, m in self.masks.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on drawing from where another set of the same masks stood."""
        for name, mask in self.masks.items():
            held = state[name]["mask"]
            mask.uses, mask._mask = int(state[name]["uses"]), None if held is None else held.to(mask.logits.device)

    def entropy(self) -> Tensor:
        """Sum over all rows of the entropy of softmax(logits), nats, differentiable."""
        return torch.stack([_entropy(m.logits).sum() for m in self.masks.values()]).sum()


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


@contextmanager
def masked_weights(model: nn.Module, masks: Mapping[str, MaskedWeight]) -> Iterator[MaskSet]:
    """Put masks on the weights of the named layers; afterwards the layers have their dense weights again.

    Raises:
        ConfigError: no such layer, or its weight is parametrised already.
    """
    put: list[tuple[nn.Module, list[str]]] = []
    try:
        for name, mask in masks.items():
            layer = layer_of(model, name)
            stored = "weight" in layer._parameters or "weight" in layer._buffers  # not what a former hook computes
            if parametrize.is_parametrized(layer, "weight") or not stored:
                what = "its weight is parametrised already (weight norm, another mask)"
                raise ConfigError(f"layer {name!r}", what, "remove that parametrisation first")
            mask.to(layer.weight.device).train(layer.training)
            put.append((layer, list(layer._parameters)))
            parametrize.register_parametrization(layer, "weight", mask, unsafe=True)
        yield MaskSet(masks)
    finally:
        for held, order in put:
            parametrize.remove_parametrizations(held, "weight", leave_parametrized=False)
            for name in order:  # the order of parameters is that of optimisers' states
                held._parameters[name] = held._parameters.pop(name)


def make_permanent_(model: nn.Module, masks: Mapping[str, MaskedWeight]) -> None:
    """Write each fixed mask (and grid) into the dense weight of its layer. Call it outside of `masked_weights`."""
    for name, mask in masks.items():
        layer = layer_of(model, name)
        with torch.no_grad():
            layer.weight.copy_(mask(layer.weight))


def layer_of(model: nn.Module, name: str) -> Layer:
    """The linear or convolution layer of that name.

    Raises:
        ConfigError: there is none, or it is of another kind.
    """
    layer = dict(model.named_modules()).get(name)
    if not takes_pattern(layer):
        what = "the model has no layer of that name" if layer is None else f"it is a {type(layer).__name__}"
        raise ConfigError(f"layer {name!r}", what, "patterns lie on linear and convolution layers")
    return layer
