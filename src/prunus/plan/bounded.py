"""Tests that a mean of values within known bounds is above a margin: exact for rates, by betting for anything else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

EDGE = 0.999
"""Share of the largest stake that can't lose everything."""


def rate_p(count: int, examples: int, margin: float) -> float:
    """Exact p-value of the hypothesis that a rate is above the margin, of so many cases in so many examples.

    Example:
        >>> round(rate_p(0, 299, 0.01), 4)
        0.0495
    """
    from scipy.special import bdtr

    return float(bdtr(count, examples, margin))


def betting_p(values: np.ndarray[Any, Any], low: float, high: float, margin: float, level: float) -> float:
    """p-value of the hypothesis that the mean of independent values in [low, high] is above the margin.

    One over the largest capital that bets against the hypothesis reach (Waudby-Smith & Ramdas 2024): under it no bet is
    favourable, so by Ville's inequality the capital gets that high with at most that probability. Each stake follows
    from the values before it; which order they come in changes the power and not the validity.

    Args:
        values: what was observed [n].
        low: smallest possible value.
        high: largest possible value.
        margin: strictly between the two.
        level: at which it will be compared; sets the stakes alone.

    Example:
        >>> values = np.random.default_rng(0).uniform(-0.1, 0.1, 2000)
        >>> betting_p(values, -1, 1, 0.02, 0.05) < 0.01 < betting_p(values, -1, 1, -0.01, 0.05)
        True
    """
    found = (np.random.default_rng(0).permutation(np.asarray(values, np.float64)) - low) / (high - low)
    mean = (margin - low) / (high - low)
    seen = np.arange(2, len(found) + 2)
    about = (0.5 + np.cumsum(found)) / seen
    spread = (0.25 + np.cumsum((found - about) ** 2)) / seen
    before = np.concatenate([[0.25], spread[:-1]])
    stakes = np.minimum(EDGE / (1 - mean), np.sqrt(2 * math.log(1 / level) / (len(found) * before)))
    capital = np.cumsum(np.log1p(stakes * (mean - found)))
    return float(min(1.0, np.exp(-capital.max(initial=0.0))))
