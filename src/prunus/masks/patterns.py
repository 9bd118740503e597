"""Patterns: which k of which n inside a weight, as text and as a layout on any layer with a weight.

Every weight is seen as [F, I, P]: F output channels or neurons, I inputs of each, P taps of a kernel (1 for a linear
layer). Transposed and grouped layers are brought into this form first, so that "per filter" means the same everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeGuard

from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.layers.submodules import is_conv1d

Granularity = Literal["weight", "kernel", "filter", "tile", "tap", "nm"]
Layer = nn.Linear | nn.modules.conv._ConvNd
"""What a pattern lies on; GPT-2's `Conv1D` counts as a linear layer."""
FORMS = "'weight 10%', 'kernel 8/64', 'filter 50%', 'tap 3/9', 'tile 4 2/8', '2:4', each with 'shared' behind it or not"


def takes_pattern(module: nn.Module | None) -> TypeGuard[Layer]:
    """Whether a pattern can lie on the module's weight."""
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or (module is not None and is_conv1d(module))


@dataclass(frozen=True)
class Form:
    """Where the filters, inputs and taps of a weight are.

    Attributes:
        filters: F, output channels or neurons.
        inputs: I, inputs of each (of its group).
        kernel: sizes of the kernel, empty for a linear layer.
        groups: of the convolution.
        transposed: the weight is [inputs of all groups, filters per group, ...] (transposed convolutions, `Conv1D`).
    """

    filters: int
    inputs: int
    kernel: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    @classmethod
    def of(cls, layer: Layer) -> Form:
        """The form of a layer's weight."""
        shape = tuple(layer.weight.shape)
        if is_conv1d(layer):
            return cls(shape[1], shape[0], (), 1, True)
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            return cls(shape[1] * layer.groups, shape[0] // layer.groups, shape[2:], layer.groups, True)
        return cls(shape[0], shape[1], shape[2:], getattr(layer, "groups", 1))

    @property
    def taps(self) -> int:
        """P, elements of the kernel."""
        return math.prod(self.kernel)

    def rows(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as [F, I, P]."""
        if self.transposed:
            grouped = weight.reshape(self.groups, self.inputs, self.filters // self.groups, self.taps)
            weight = grouped.transpose(1, 2)
        return weight.reshape(self.filters, self.inputs, self.taps)

    def weight(self, rows: Tensor) -> Tensor:
        """The way back, from [F or 1, I or 1, P or 1]; a size of 1 stays one, so that a mask keeps broadcasting."""
        first, inputs, taps = rows.shape
        tail = self.kernel if taps > 1 else (1,) * len(self.kernel)
        if not self.transposed:
            return rows.reshape(first, inputs, *tail)
        if self.groups == 1:
            return rows.transpose(0, 1).reshape(inputs, first, *tail)
        rows = rows.expand(self.filters, self.inputs, taps)
        swapped = rows.reshape(self.groups, self.filters // self.groups, self.inputs, taps).transpose(1, 2)
        return swapped.reshape(self.groups * self.inputs, self.filters // self.groups, *tail)


@dataclass(frozen=True)
class Pattern:
    """What is kept of a weight; see `Pattern.parse` for the texts.

    Attributes:
        granularity: `weight` (k of the inputs x taps of every filter or neuron), `kernel` (k of the inputs), `filter`
            (k of the filters), `tap` (k of the taps of every kernel), `tile` (k of the inputs inside each of `tiles`
            tiles), `nm` (k of every n inputs in a row, tap by tap).
        kept: k, or the fraction of n that stays.
        of: n, which the layer must have; None takes what it has.
        tiles: number of tiles, for `tile`.
        shared: one choice for all filters.
    """

    granularity: Granularity
    kept: int | float
    of: int | None = None
    tiles: int = 1
    shared: bool = False

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read `weight 10%`, `kernel 8/64`, `filter 50%`, `tap 3/9`, `tile 4 2/8` or `2:4`; `shared` may follow.

        Raises:
            ConfigError: another text.
        """
        words = text.split()
        shared = bool(words) and words[-1] == "shared"
        words = words[:-1] if shared else words
        if len(words) == 1 and (nm := re.fullmatch(r"(\d+):(\d+)", words[0])):
            kept, of = int(nm[1]), int(nm[2])
            return cls("nm", _count(kept, of, text), of, 1, shared)
        tiles = 1
        if len(words) == 3 and words[0] == "tile" and words[1].isdigit() and int(words[1]) > 0:
            tiles = int(words.pop(1))
        if len(words) == 2 and words[0] in ("weight", "kernel", "filter", "tap", "tile"):
            granularity: Granularity = words[0]  # type: ignore[assignment]
            if granularity == "filter" and shared:
                raise ConfigError(f"pattern {text!r}", "filters are one choice already", "leave 'shared' away")
            if share := re.fullmatch(r"(\d+(?:\.\d+)?)%", words[1]):
                fraction = float(share[1]) / 100
                if 0 < fraction <= 1:
                    return cls(granularity, fraction, None, tiles, shared)
            elif ratio := re.fullmatch(r"(\d+)/(\d+)", words[1]):
                of = int(ratio[2])
                return cls(granularity, _count(int(ratio[1]), of, text), of, tiles, shared)
        raise ConfigError(f"pattern {text!r}", "this is not a pattern", f"write one of {FORMS}")

    def layout(self, layer: Layer, name: str) -> Layout:
        """How the pattern lies on a layer.

        Raises:
            ConfigError: it does not fit; the message names the layer and the nearest pattern that does.
        """
        form = Form.of(layer)
        filters, inputs, taps = form.filters, form.inputs, form.taps
        if self.granularity == "nm":
            return self._nm(form, name)
        if inputs % self.tiles:
            near = max(t for t in range(1, self.tiles + 1) if inputs % t == 0)
            what = f"{inputs} inputs are no multiple of {self.tiles} tiles"
            raise ConfigError(f"layer {name!r}", what, f"the nearest that fits is {near} tiles")
        rows, n = {
            "weight": (filters, inputs * taps),
            "kernel": (filters, inputs),
            "filter": (1, filters),
            "tap": (filters * inputs, taps),
            "tile": (filters * self.tiles, inputs // self.tiles),
        }[self.granularity]
        if self.of is not None and self.of != n:
            nearest = max(1, round(float(self.kept) / self.of * n))
            what = f"the pattern is for {self.of} elements, a row has {n}"
            raise ConfigError(f"layer {name!r}", what, f"the nearest that fits is {nearest}/{n}")
        k = self.kept if isinstance(self.kept, int) else round(self.kept * n)
        if not 1 <= k <= n:
            what = f"{self.kept:.3g} of {n} elements is none"
            raise ConfigError(f"layer {name!r}", what, f"keep at least {100 / n:.3g}%, or leave the layer out")
        return Layout(self, form, rows // filters if self.shared else rows, n, k)

    def _nm(self, form: Form, name: str) -> Layout:
        inputs = form.inputs
        assert self.of is not None
        assert isinstance(self.kept, int)
        if inputs % self.of:
            fitting = [m for m in range(1, inputs + 1) if inputs % m == 0]
            near = min(fitting, key=lambda m: abs(m - (self.of or 1)))
            what = f"{inputs} inputs are no multiple of {self.of}"
            advice = (
                f"the nearest that fits is {max(1, round(self.kept / self.of * near))}:{near}, or leave the layer out"
            )
            raise ConfigError(f"layer {name!r}", what, advice)
        rows = (1 if self.shared else form.filters) * form.taps * (inputs // self.of)
        return Layout(self, form, rows, self.of, self.kept)

    def __str__(self) -> str:
        share = f"{100 * self.kept:g}%" if isinstance(self.kept, float) else f"{self.kept}/{self.of}"
        text = f"{self.kept}:{self.of}" if self.granularity == "nm" else f"{self.granularity} {share}"
        text = text.replace("tile ", f"tile {self.tiles} ")
        return f"{text} shared" if self.shared else text


@dataclass(frozen=True)
class Layout:
    """A pattern on one layer: `rows` choices of `k` out of `n`.

    Attributes:
        pattern: what was asked.
        form: of the weight.
        rows: number of independent choices R.
        n: elements of each.
        k: how many stay.
    """

    pattern: Pattern
    form: Form
    rows: int
    n: int
    k: int

    @property
    def density(self) -> float:
        """Share of the weights that stays."""
        return self.k / self.n

    @property
    def direct(self) -> bool:
        """Whether the choices are the weight's own memory, row by row."""
        kind = self.pattern.granularity
        if self.pattern.shared or self.form.transposed or kind in ("kernel", "tile", "filter"):
            return False
        return kind != "nm" or self.form.taps == 1

    def rows_of(self, values: Tensor) -> Tensor:
        """Sum a per-weight quantity [F, I, P] over the weights that each choice decides: [R, n]."""
        filters, inputs, taps = self.form.filters, self.form.inputs, self.form.taps
        kind = self.pattern.granularity
        if kind in ("kernel", "tile"):
            values = values.sum(2)
        if kind == "filter":
            return values.sum((1, 2)).reshape(1, filters)
        if kind == "nm":
            values = values.reshape(filters, inputs // self.n, self.n, taps).permute(0, 3, 1, 2)
        values = values.reshape(filters, -1)
        return (values.sum(0) if self.pattern.shared else values).reshape(self.rows, self.n)

    def spread(self, mask: Tensor) -> Tensor:
        """A mask [R, n] as one broadcastable to the weight in the form [F, I, P]."""
        filters, inputs, taps = self.form.filters, self.form.inputs, self.form.taps
        kind = self.pattern.granularity
        if kind == "filter":
            return mask.reshape(filters, 1, 1)
        first = 1 if self.pattern.shared else filters
        if kind == "nm":
            return mask.reshape(first, taps, inputs // self.n, self.n).permute(0, 2, 3, 1).reshape(first, inputs, taps)
        return mask.reshape(first, inputs, 1 if kind in ("kernel", "tile") else taps)

    def on_weight(self, mask: Tensor) -> Tensor:
        """A mask [R, n] as one broadcastable to the layer's own weight."""
        return self.form.weight(self.spread(mask))


def _count(kept: int, of: int, text: str) -> int:
    if not 1 <= kept <= of:
        raise ConfigError(f"pattern {text!r}", f"{kept} of {of} can't be kept", f"keep 1 to {of}")
    return kept


def check_patterns(asked: str | Mapping[str, str] | None) -> None:
    """Read a pattern, or one for each layer, as text: before any work. Raises ConfigError for text that is none."""
    for text in asked.values() if isinstance(asked, Mapping) else [asked] if asked else []:
        Pattern.parse(text)
