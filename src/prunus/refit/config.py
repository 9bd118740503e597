"""The settings of repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunus.runtime.fields import check_fields
from prunus.runtime.ranges import Count


@dataclass(frozen=True)
class RepairConfig:
    """How layers are refitted.

    Attributes:
        examples: how many examples are looked at, at most.
        rows: rows (positions of examples) that a layer is fitted to, for each of its unknowns; at least `least_rows`.
        least_rows: see `rows`.
        most_rows: see `rows`.
        layers: `readers` of what goes, or `all` layers whose input has changed.
        held_out: every so many-th example is held out: the price of a change is chosen on them.
        sums: what the other side of a residual sum gets wrong is added to what the layer before the sum should make.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(64, 8)
        >>> few = prunus.RepairConfig(examples=64, layers="readers")
        >>> prunus.prune(net, x, method="l1", target=0.25, data=[(x,)], repair=few).refits[0].layer
        '2'
    """

    examples: Count = 1024
    rows: Count = 40
    least_rows: Count = 16384
    most_rows: Count = 32768
    layers: Literal["all", "readers"] = "all"
    held_out: Count = 5
    sums: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
