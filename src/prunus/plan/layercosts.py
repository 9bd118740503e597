"""What the layers of a network were measured to cost over their widths, and what that foretells of a smaller one."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunus.files.decoding import Malformed, decode
from prunus.plan.resources import Remains

BLOCKS = (8, 16)
"""Channels that kernels of CPUs work on at once."""
STEEP = 0.5
"""Half a block costs nearly a whole one if it lies further up than this between the blocks before and after it."""


@dataclass(frozen=True)
class LayerCosts:
    """Cost of one call of a layer, whose weight has so many elements along its first two dimensions.

    Attributes:
        first: widths along the first that were measured, ascending; the last is the dense one.
        second: along the second.
        by_first: cost at each of `first`, with the whole second.
        by_second: cost at each of `second`, with the whole first.
        least: cost at the smallest of both.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    by_first: tuple[float, ...]
    by_second: tuple[float, ...]
    least: float

    @classmethod
    def decoded(cls, value: Any, where: str) -> LayerCosts:
        """Costs from plain data of a file; see `files.decoding.decode`. Raises Malformed."""
        names = ("first", "second", "by_first", "by_second", "least")
        if not isinstance(value, dict) or set(value) != set(names):
            raise Malformed(f"{where} has not the fields {', '.join(names)}")
        kinds = (tuple[int, ...], tuple[int, ...], tuple[float, ...], tuple[float, ...], float)
        parts = [decode(kind, value[name], f"{where}.{name}") for name, kind in zip(names, kinds, strict=True)]
        for widths, costs in ((parts[0], parts[2]), (parts[1], parts[3])):
            ascending = bool(widths) and widths[0] > 0 and all(a < b for a, b in itertools.pairwise(widths))
            if not ascending or len(widths) != len(costs) or min(costs) <= 0:
                raise Malformed(f"{where} has widths that don't ascend, or not one positive cost for each")
        return cls(*parts)

    def at(self, first: float, second: float, block: int) -> float:
        """Cost at two widths, which cost as much as whole blocks do: never less than narrower ones."""
        one = _between(self.first, self.by_first, first, block)
        other = _between(self.second, self.by_second, second, block)
        whole = max(self.by_first[-1], self.by_second[-1])
        return self._fixed + (one - self._fixed) * (other - self._fixed) / max(whole - self._fixed, 1e-12)

    @property
    def _fixed(self) -> float:
        """What a call costs at no width at all, so that the product of both dimensions meets `least`."""
        whole = max(self.by_first[-1], self.by_second[-1])
        below = self.least + whole - self.by_first[0] - self.by_second[0]
        if below <= 0:
            return 0.0
        fixed = (self.least * whole - self.by_first[0] * self.by_second[0]) / below
        return min(max(fixed, 0.0), self.least, self.by_first[0], self.by_second[0])


def _between(widths: Sequence[int], costs: Sequence[float], width: float, block: int) -> float:
    """Cost at a width, rounded up to blocks, on straight lines between what was measured."""
    full = min(np.ceil(width / block - 1e-9) * block, widths[-1])
    return float(np.interp(full, widths, costs))


def block_of(costs: Sequence[LayerCosts]) -> int:
    """How many channels are worked on at once: 16 where eight more than a multiple of it cost nearly as much as 16."""
    up, all_of_it = 0.0, 0.0
    for found in costs:
        for widths, prices in ((found.first, found.by_first), (found.second, found.by_second)):
            known = dict(zip(widths, prices, strict=True))
            for width in widths:
                low, high = known.get(width - BLOCKS[0]), known.get(width + BLOCKS[0])
                if width % BLOCKS[1] == BLOCKS[0] and low is not None and high is not None and high > low:
                    up += known[width] - low
                    all_of_it += high - low
    return BLOCKS[1] if up > (1 + STEEP) / 2 * all_of_it else BLOCKS[0]


@dataclass(frozen=True)
class LayerTable:
    """What all layers together cost, of what remains of a network.

    Attributes:
        layers: costs by the name of the weight, None where the layer is of a kind that can't be measured by itself: it
            is taken to cost as much for a multiply-accumulate as the others do on average.
        block: see `block_of`.
        entering: what it costs to enter the runtime, which every layer was timed with and a network pays once.
        source: machine, runtime and threads that they are of.
    """

    layers: Mapping[str, LayerCosts | None]
    block: int
    entering: float = 0.0
    source: str = field(default="", compare=False)

    @property
    def digest(self) -> str:
        """Eight digits that two tables share if all their costs are the same."""
        return hashlib.sha256(repr((sorted(self.layers.items()), self.block, self.entering)).encode()).hexdigest()[:8]

    def __call__(self, left: Remains) -> float:
        """Sum over the layers; other operations are not in it."""
        found, known, unknown = 0.0, 0.0, 0.0
        rows = left.layout.contracted
        macs = left.elements[rows] * left.positions
        for number, call in enumerate(left.layout.graph.contractions):
            costs = self.layers.get(call.weight)
            if costs is None:
                unknown += macs[number]
                continue
            sizes = left.shapes[rows[number]]
            share = left.positions[number] / (call.positions or 1)
            alone = costs.at(sizes[0], sizes[1] if len(sizes) > 1 else 1, self.block)
            found += share * max(alone - self.entering, 0.0)
            known += macs[number]
        return self.entering + float(found * (1 + unknown / known) if known else unknown)
