"""What is measured and not counted: foretold of smaller networks, and corrected by every one that was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from prunus.plan.resources import Remains

NEAR = 1e-6


@dataclass(frozen=True)
class Gauge:
    """From a rough count to what would be measured: straight lines through the networks that were.

    Attributes:
        rough: a count that grows with what is measured.
        points: (rough count, measured amount) of whole networks, the last measured last; at least one.
        block: channels that are worked on at once, so that fewer cost as much.
    """

    rough: Callable[[Remains], float]
    points: tuple[tuple[float, float], ...]
    block: int = 1

    def __call__(self, left: Remains) -> float:
        """The amount foretold of what remains of a network."""
        return self.read(self.rough(left))

    def read(self, count: float) -> float:
        """The amount for a rough count; it never falls as the count grows, and is proportional to it beyond."""
        places, amounts = np.array(sorted(self.points)).T
        amounts = np.maximum.accumulate(amounts)
        if count <= places[0]:
            return float(amounts[0] * count / places[0]) if len(places) == 1 else self._below(count, places, amounts)
        if count >= places[-1]:
            return float(amounts[-1] * count / places[-1])
        return float(np.interp(count, places, amounts))

    @staticmethod
    def _below(count: float, places: np.ndarray, amounts: np.ndarray) -> float:
        slope = (amounts[1] - amounts[0]) / max(places[1] - places[0], NEAR)
        # A line that would pass below nothing bends to it.
        line = amounts[0] - slope * (places[0] - count)
        return float(max(line, amounts[0] * count / places[0] * 0.5))

    def corrected(self, count: float, amount: float) -> Gauge:
        """The same with one more network; what was measured close to it before gives way."""
        dense = max(self.points)
        kept = tuple(p for p in self.points if p == dense or abs(p[0] - count) > 0.02 * dense[0])
        return replace(self, points=(*kept, (count, amount)))
