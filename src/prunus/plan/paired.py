"""An exact test of how much more often one of two networks is wrong, from the examples on which just one is right.

Of n examples, N10 are lost (only the first network right) and N01 won. The hypothesis: the rate of losses exceeds that
of wins by more than the margin. What is not known is the rate q at which the two differ at all. So the tail of a
studentised difference is maximised over q within its Clopper-Pearson interval, and the little probability that q lies
outside is added (Berger & Boos 1994): the p-value is valid at every n, and close to what the normal approximation
would say.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

OUTSIDE = 1 / 20
"""Share of the level that is spent on q being outside of its interval."""
STEP = 0.03
"""Width of a cell of q, in standard deviations of what n examples say of it."""
MOST = 0.95
"""Nothing is shown of networks that may differ on more examples."""
ORDERS = np.array([20.0, 40.0, 80.0, 160.0])
"""Orders of Hölder's inequality; each gives a bound, and the least is taken."""

Array = np.ndarray[Any, np.dtype[np.float64]]


def paired_p(lost: int, won: int, examples: int, margin: float, level: float) -> float:
    """p-value of the hypothesis that P(lost) - P(won) > margin.

    Args:
        lost: examples that only the first network has right.
        won: examples that only the second has right.
        examples: of how many, drawn independently.
        margin: in (0, 1).
        level: at which it will be compared; part of it pays for the unknown rate.

    Example:
        >>> paired_p(20, 14, 5000, 0.01, level=0.05) < 0.01 < paired_p(20, 14, 1000, 0.01, level=0.05)
        True
    """
    from scipy.special import bdtr

    if lost - won >= examples * margin:
        return 1.0
    spent = level * OUTSIDE
    low, high = (max(margin, q) for q in interval(lost + won, examples, spent))
    if high > MOST:
        return 1.0
    differing, most_lost = _region(lost, won, examples, margin, low, high)
    edges = _edges(low, high, margin, examples)
    ends = edges[1:, None]
    chance = np.exp(_log_binomial(differing, examples, ends))
    share = (ends + margin) / (2 * ends)
    within = np.where(most_lost < 0, 0.0, bdtr(np.clip(most_lost, 0.0, differing), differing, share))
    tails = (chance * within).sum(1) + np.clip(1 - chance.sum(1), 0, 1)  # what was left out counts in full
    return float(min(1.0, spent + _between(edges, tails, margin, examples).max()))


def interval(count: int, examples: int, level: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a rate; each side is wrong with at most half of the level."""
    from scipy.special import betaincinv

    low = 0.0 if count == 0 else float(betaincinv(count, examples - count + 1, level / 2))
    high = 1.0 if count == examples else float(betaincinv(count + 1, examples - count, 1 - level / 2))
    return low, high


def _region(
    lost: int, won: int, n: int, margin: float, low: float, high: float
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Array]:
    """Counts of differing examples, and for each the most losses that speak as loudly against the hypothesis."""
    reach = 9 * math.sqrt(n * high) + 20
    differing = np.arange(max(0, math.floor(n * low - reach)), min(n, math.ceil(n * high + reach)) + 1)

    def deviation(count: Any) -> Any:
        # Any function of the count is valid. The half keeps few differing examples from looking like certainty.
        return np.sqrt(count + n * margin / 2 - n * margin**2 / 2)

    loudness = (lost - won - n * margin) / deviation(lost + won)
    return differing, np.floor((differing + n * margin + loudness * deviation(differing)) / 2 + 1e-9)


def _edges(low: float, high: float, margin: float, n: int) -> Array:
    """Edges of cells of q, equally far apart by what n examples can tell (Fisher information)."""
    root = np.linspace(math.sqrt(low - margin), math.sqrt(high - margin), 1000)
    q = margin + root**2
    speed = np.sqrt(n * (4 * q / (q + margin) + 4 * root**2 / (1 - q)))
    length = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(root))])
    cells = max(1, math.ceil(length[-1] / STEP))
    edges: Array = margin + np.interp(np.linspace(0, length[-1], cells + 1), length, root) ** 2
    return edges


def _between(edges: Array, tails: Array, margin: float, n: int) -> Array:
    """Upper bound of the tail over each cell, from its value at the right end.

    By Hölder's inequality P_q(A) <= P_b(A)^(1 - 1/r) E_b[(dP_q/dP_b)^r]^(1/r); the last is convex in q, so its largest
    value is at an end, and at b it is one.
    """
    from scipy.special import xlogy

    left, right = (np.stack([(q + margin) / 2, np.maximum(q - margin, 0) / 2, 1 - q]) for q in (edges[:-1], edges[1:]))
    order = ORDERS[:, None, None]
    with np.errstate(divide="ignore"):
        powers = np.exp(xlogy(order, left) + np.where(left > 0, xlogy(1 - order, right), 0.0))
    moments = np.log(powers.sum(1)).clip(0)  # never below one: q may be b itself
    with np.errstate(divide="ignore"):
        bounds = np.exp((1 - 1 / ORDERS[:, None]) * np.log(tails) + n * moments / ORDERS[:, None])
    best: Array = bounds.min(0)
    return best


def _log_binomial(counts: np.ndarray[Any, Any], n: int, rate: Array) -> Array:
    from scipy.special import gammaln, xlog1py, xlogy

    ways = gammaln(n + 1) - gammaln(counts + 1) - gammaln(n - counts + 1)
    log: Array = ways + xlogy(counts, rate) + xlog1py(n - counts, -rate)
    return log
