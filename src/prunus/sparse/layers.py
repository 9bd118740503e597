"""Condensed layers in place of masked ones: the same outputs from k values and k indices per output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError, DataError
from prunus.kernels.convolutions import geometry_of
from prunus.kernels.packed import Packed, block_for, pack, packed_product
from prunus.kernels.products import looped
from prunus.layers.submodules import is_conv1d, replace_submodules_
from prunus.masks.patterns import Layout
from prunus.runtime.entry import entry
from prunus.sparse.operations import (
    condensed,
    condensed_conv2d,
    convolution,
    in_autocast,
    in_loops,
    narrow,
    product,
    reads_shorts,
    wide,
)

Own = TypeVar("Own", bound="_Condensed")


class _Condensed(nn.Module):
    """Values and indices, and the product with them.

    Attributes:
        packs: on CPUs keep a second copy of a large layer's weight, in an order that is faster from 33 examples on. It
            is made at the first use, and again when the weight has changed, or the mode; between these, writing through
            `values.data` isn't seen.
    """

    index: Tensor
    packs = True

    def __init__(self, values: Tensor, index: Tensor, inputs: int, bias: Tensor | None) -> None:
        super().__init__()
        _check(values, index, inputs, bias)
        self.inputs = inputs
        self.values = nn.Parameter(values.detach().clone())
        self.register_buffer("index", narrow(index, inputs))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self._wide: Tensor | None = None
        self._packed: Packed | None = None

    def _product(self, x: Tensor) -> Tensor:
        """[B, I] -> [B, O], the bias added."""
        # Each attribute is looked up once: a module finds parameters slowly, beside what a small product takes.
        x, values, index, bias = in_autocast(x), self.values, self.index, self.bias
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            out = condensed(x, values, index)
            return out if bias is None else out + bias.to(out.dtype)
        if in_loops(x, values):
            packs = self.packs and x.dtype == torch.float32
            columns = block_for(len(x), values, index, self.inputs) if packs else None
            out = looped(x, values, index) if columns is None else self._by_blocks(x, columns)
        else:
            out = product(x, values, index if reads_shorts(x, values) else self._widened())
        return out if bias is None else out.add_(bias)

    def _widened(self) -> Tensor:
        # Torch's own operations want 32 bits. Kept once made, outside the state: it is derived.
        if self._wide is None or self._wide.device != self.index.device or self._wide.shape != self.index.shape:
            self._wide = wide(self.index)
        return self._wide

    def _by_blocks(self, x: Tensor, columns: int) -> Tensor:
        packed = self._packed
        if packed is None or not packed.of(self.values, self.index):
            packed = self._packed = pack(self.values, self.index, self.inputs, columns)
        return packed_product(x, self.values, self.index, packed)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # copies have weights of their own

    def train(self: Own, mode: bool = True) -> Own:
        """As every module's; the packed copy is made anew after training, whatever wrote to the values."""
        if mode != self.training:
            self._packed = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._packed = None  # other types and devices: its memory is not kept
        return super()._apply(fn, recurse)

    def _flat_weight(self) -> Tensor:
        zeros = self.values.new_zeros(len(self.values), self.inputs)
        return zeros.scatter(1, wide(self.index).long(), self.values)


class CondensedLinear(_Condensed):
    """A linear layer with exactly k inputs per output: values [O, k], indices [O, k], ascending and unique in a row.

    Args:
        values: fp32 or bf16 [O, k].
        index: integer columns [O, k].
        inputs: number of input features I.
        bias: [O], or None.

    Raises:
        ConfigError: shapes that do not fit, or indices that are out of range or not ascending.
    """

    def __init__(self, values: Tensor, index: Tensor, inputs: int, bias: Tensor | None = None) -> None:
        super().__init__(values, index, inputs, bias)
        self.in_features, self.out_features = inputs, values.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]. Raises DataError for inputs of another width."""
        if x.shape[-1] != self.in_features:
            # The compiled loops would read beyond the example.
            raise DataError("CondensedLinear", f"an input {tuple(x.shape)}", f"give [..., {self.in_features}]")
        if x.dim() == 2:
            return self._product(x)
        return self._product(x.reshape(-1, self.in_features)).reshape(*x.shape[:-1], self.out_features)

    def dense_weight(self) -> Tensor:
        """The weight [O, I] with its zeros."""
        return self._flat_weight()

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{self.in_features} -> {self.out_features}, {self.values.shape[1]} inputs each"


class CondensedConv2d(_Condensed):
    """A convolution with exactly k of the Cin * kh * kw weights in every filter; see `CondensedLinear`.

    Args:
        conv: the masked convolution; groups must be 1 and the padding zeros.
        index: columns of the flattened filters, [O, k].

    Raises:
        ConfigError: a convolution of another kind.
    """

    def __init__(self, conv: nn.Conv2d, index: Tensor) -> None:
        if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            what = f"groups={conv.groups}, padding={conv.padding!r} ({conv.padding_mode})"
            raise ConfigError("CondensedConv2d", what, "condense convolutions with groups=1 and numbers as padding")
        flat = conv.weight.detach().reshape(conv.out_channels, -1)
        super().__init__(flat.gather(1, index), index, flat.shape[1], conv.bias)
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size: tuple[int, ...] = conv.kernel_size
        self.stride: tuple[int, ...] = conv.stride
        self.padding: tuple[int, ...] = conv.padding
        self.dilation: tuple[int, ...] = conv.dilation

    def forward(self, x: Tensor) -> Tensor:
        """[B, Cin, H, W] -> [B, O, H', W'], or both without B. Raises DataError for inputs of another shape."""
        if x.dim() == 3:
            return cast(Tensor, self(x[None]))[0]
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            # The compiled loops would read beyond the image.
            raise DataError("CondensedConv2d", f"an input {tuple(x.shape)}", f"give [B, {self.in_channels}, H, W]")
        x = in_autocast(x)
        settings = list(self.kernel_size), list(self.stride), list(self.padding), list(self.dilation)
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            out = condensed_conv2d(x, self.values, self.index, *settings)
        else:
            out = convolution(x, self.values, self.index, geometry_of(x, *settings))
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def dense_weight(self) -> Tensor:
        """The weight [O, Cin, kh, kw] with its zeros."""
        return self._flat_weight().reshape(self.out_channels, self.in_channels, *self.kernel_size)

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{self.in_channels} -> {self.out_channels}, {self.values.shape[1]} weights each, {self.kernel_size}"


def _check(values: Tensor, index: Tensor, inputs: int, bias: Tensor | None) -> None:
    if values.dim() != 2 or values.shape != index.shape or (bias is not None and bias.shape != values.shape[:1]):
        what = f"values {tuple(values.shape)}, index {tuple(index.shape)}"
        raise ConfigError("condensed layer", what, "give values and index of shape [O, k], and a bias [O] or None")
    if bool((index < 0).any() | (index >= inputs).any() | (index[:, 1:] <= index[:, :-1]).any()):
        what = f"an index outside 0..{inputs - 1}, or a row that does not ascend"
        raise ConfigError("condensed layer", what, "give each row's columns once, in ascending order")


def has_condensed_form(layer: nn.Module, layout: Layout) -> bool:
    """Whether `condense` takes a layer of this kind with masks that lie on it so."""
    if layout.pattern.granularity == "filter":
        return False
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear) or is_conv1d(layer)


def condense(layer: nn.Module, layout: Layout, mask: Tensor, name: str = "layer") -> nn.Module:
    """A condensed layer with the outputs of a masked one.

    Args:
        layer: a linear layer (GPT-2's `Conv1D` too) or a 2-d convolution whose weight is zero outside the mask.
        layout: how the mask lies on it.
        mask: bool [R, n].
        name: for messages.

    Raises:
        ConfigError: another kind of layer, a pattern without a constant number of weights per output, or a weight that
            is not masked.
    """
    if not has_condensed_form(layer, layout):
        what = f"a {type(layer).__name__} with the pattern {layout.pattern}"
        fix = "condense linear layers and ungrouped 2-d convolutions padded with zeros; filters go for real"
        raise ConfigError(f"layer {name!r}", what, fix)
    transposed = is_conv1d(layer)
    weight, bias = cast(Tensor, layer.weight), cast(Tensor | None, layer.bias)
    on_weight = layout.on_weight(mask).expand(weight.shape)
    if bool((weight.detach()[~on_weight] != 0).any()):
        raise ConfigError(f"layer {name!r}", "weights outside the mask are not zero", "make the mask permanent first")
    if transposed:
        weight, on_weight = weight.t(), on_weight.t()
    flat = on_weight.reshape(len(weight), -1)
    kept = int(flat[0].sum())
    index = flat.nonzero()[:, 1].view(len(flat), kept)
    if isinstance(layer, nn.Conv2d):
        return CondensedConv2d(layer, index)
    return CondensedLinear(weight.gather(1, index), index, weight.shape[1], bias)


@entry()
def condense_(model: nn.Module, layouts: Mapping[str, Layout], masks: Mapping[str, Tensor]) -> nn.Module:
    """Replace the named masked layers of a model by condensed ones; returns the model.

    Raises:
        ConfigError: as `condense`; the model is unchanged.

    Example:
        >>> from prunus.masks.patterns import Pattern
        >>> net, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(2, 8)
        >>> mask = torch.zeros(4, 8, dtype=torch.bool).scatter_(1, net[0].weight.abs().topk(2).indices, True)
        >>> with torch.no_grad():
        ...     before = net[0].weight.mul_(mask) @ x[0] + net[0].bias
        >>> small = prunus.condense_(net, {"0": Pattern.parse("weight 2/8").layout(net[0], "0")}, {"0": mask})
        >>> small[0].values.shape, torch.allclose(small(x)[0], before, atol=1e-6)
        (torch.Size([4, 2]), True)
    """
    modules = dict(model.named_modules())
    made = {name: condense(modules[name], layouts[name], mask, name) for name, mask in masks.items()}
    for name, layer in made.items():
        layer.to(modules[name].weight.device).train(modules[name].training)
    return replace_submodules_(model, made)


@entry()
def densify_(model: nn.Module) -> nn.Module:
    """Replace condensed layers by ordinary ones with zeros, for formats that know no condensed layer (ONNX).

    Example:
        >>> from prunus.sparse.layers import CondensedLinear
        >>> layer = CondensedLinear(torch.tensor([[1.0, 2.0]]), torch.tensor([[0, 3]]), inputs=4, bias=None)
        >>> prunus.densify_(nn.Sequential(layer))[0].weight.tolist()
        [[1.0, 0.0, 0.0, 2.0]]
    """
    if isinstance(model, CondensedLinear | CondensedConv2d):
        return _dense(model)
    condensed = {n: m for n, m in model.named_modules() if isinstance(m, CondensedLinear | CondensedConv2d)}
    return replace_submodules_(model, {n: _dense(m) for n, m in condensed.items()})


def _dense(layer: CondensedLinear | CondensedConv2d) -> nn.Module:
    bias = layer.bias is not None
    made: nn.Linear | nn.Conv2d
    if isinstance(layer, CondensedLinear):
        made = nn.Linear(layer.in_features, layer.out_features, bias=bias)
    else:
        made = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,  # type: ignore[arg-type]
            bias=bias,
        )  # fmt: skip
    made = made.to(layer.values.device, layer.values.dtype).train(layer.training)
    with torch.no_grad():
        made.weight.copy_(layer.dense_weight())
        if layer.bias is not None and made.bias is not None:
            made.bias.copy_(layer.bias)
    return made
