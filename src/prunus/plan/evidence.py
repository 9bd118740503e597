"""What a held-out set says for and against a promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from prunus.plan.bounded import betting_p, rate_p
from prunus.plan.paired import paired_p
from prunus.plan.promise import Promise

HALVINGS = 14
"""Steps to a confidence limit: to 1e-4 of the range."""
LARGEST = 1 << 30


@dataclass(frozen=True)
class Evidence:
    """What is lost on held-out examples, against a promise.

    Attributes:
        promise: what is to be shown.
        losses: of every example, float64 [n], see `Promise`.
        whole: every example is lost, won or neither: a loss is -1, 0 or 1.
    """

    promise: Promise
    losses: np.ndarray[Any, np.dtype[np.float64]]
    whole: bool

    @property
    def mean(self) -> float:
        """What is lost on average."""
        return float(self.losses.mean())

    @cached_property
    def p(self) -> float:
        """Valid p-value of the hypothesis that more is lost than was promised."""
        return self.p_at(self.promise.margin)

    def p_at(self, margin: float) -> float:
        """The same for another margin."""
        promise, n = self.promise, len(self.losses)
        lost, won = int((self.losses > 0).sum()), int((self.losses < 0).sum())
        if self.whole and promise.relative:
            return paired_p(lost, won, n, margin, promise.level)
        if self.whole:
            return rate_p(lost, n, margin)
        return betting_p(self.losses, *promise.span, margin, promise.level)

    def limit(self) -> float:
        """The least margin that these examples would have shown; it holds of one network, chosen beforehand."""
        low, high = max(self.mean, 0.0 if self.whole else self.promise.span[0]), self.promise.span[1]
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.p_at(middle) <= self.promise.level else (middle, high)
        return high

    def needed(self) -> int | None:
        """Roughly how many examples would show the promise of a network like this one; None if none would."""
        from scipy.special import ndtri

        room = self.promise.margin - self.mean
        if room <= 0:
            return None
        spread = max(float(self.losses.std()), math.sqrt(self.promise.margin / len(self.losses)))
        found = (float(ndtri(self.promise.confidence)) * spread / room) ** 2
        return max(math.ceil(1.1 * found), fewest(self.promise, whole=self.whole))


def fewest(promise: Promise, *, whole: bool) -> int:
    """The smallest number of examples that could show a promise: those on which nothing is lost."""
    least = max(promise.span[0], 0.0)

    def shown(n: int) -> bool:
        return Evidence(promise, np.full(n, least), whole).p <= promise.level

    return _first(shown)


def _first(shown: Callable[[int], bool]) -> int:
    """The smallest number that does, if all larger ones do too."""
    high = 1
    while not shown(high) and high < LARGEST:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high
