"""Which counts a group may keep: widths that fill the hardware's vectors and tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prunus.graph.groups import ChannelGroup

DEFAULT = 8
"""Kernels of CPUs and GPUs work on 4, 8 or 16 channels at once; what is left over costs as much as a whole block."""


def step_of(group: ChannelGroup, round_to: int) -> int:
    """Kept counts of the group are multiples of this, or all of its units.

    Widths of layers are rounded, not numbers of units: a head of 64 dimensions is a multiple of 8 by itself. A group of
    less than twice `round_to` positions takes half of it, and so on while the step would leave the group whole.

    Args:
        group: whose counts are rounded.
        round_to: multiple of channels wanted; 1 for any count.

    Returns:
        The step in units, a multiple of `group.multiple`.
    """
    width = _positions_per_unit(group)
    step = round_to
    if group.units * width < 2 * round_to:
        step = max(1, round_to // 2)
    units = step // math.gcd(step, width)
    while units > 1 and math.lcm(units, group.multiple) >= group.units:
        units //= 2
    return math.lcm(units, group.multiple)


def uneven(groups: Sequence[ChannelGroup], kept: Mapping[str, Sequence[Any]]) -> str:
    """A note on widths that hardware runs badly, naming them and the remedy; empty if there are none."""
    odd = [
        f"{g.name} ({len(kept[g.name])} of {g.units})"
        for g in groups
        if len(kept.get(g.name, ())) not in (0, g.units)
        and g.units * _positions_per_unit(g) >= 2 * DEFAULT
        and len(kept[g.name]) * _positions_per_unit(g) % 4
    ]
    if not odd:
        return ""
    shown = ", ".join(odd[:4]) + (f" and {len(odd) - 4} more" if len(odd) > 4 else "")
    return f"widths that are no multiples of 4 may run no faster than the dense ones: {shown}; round_to=8 avoids them"


def _positions_per_unit(group: ChannelGroup) -> int:
    """Channels that a unit has in the layer that writes it: 1, or the dimensions of a head."""
    planes = [slot.units_along_dim for slot in group.writers if slot.dim >= 0]
    if not planes:
        return 1
    counts = np.bincount(planes[0][planes[0] >= 0], minlength=group.units)
    return max(1, int(counts.min()))
