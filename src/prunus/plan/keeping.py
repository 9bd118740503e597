"""How sure it is that a unit stays: in a plan of this size, made from scores that were learned anew.

That is so for methods whose scores come with replicas (`Scores.replicas`): Dirichlet and the criteria on gradients.
Posteriors without them state the probability under the one posterior that was learned (`Posterior.keep_probability`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prunus.errors import ConfigError
from prunus.posteriors.best import times_best

UNDECIDED = (0.05, 0.95)
"""Between these a unit's fate is open."""
NAMED = 12
"""Undecided units of a group that are named at most."""
WHOLE = 0.99
"""Largest share of a score that its noise is taken for: a factor of 14 to both sides."""
NEIGHBOURS = 5
"""Units before and after, in the order of the scores, over which the noise of a unit is averaged."""
TIE = 1e-9
"""Relative difference below which scores are the same, and chance decides: less than fp32 can tell apart."""
DRAWS, LARGEST = 4096, 1 << 26


def keep_probability(
    score: Tensor, replicas: Tensor, k: int, *, rows: npt.NDArray[np.int64] | None = None, seed: int = 0
) -> Tensor:
    """Probability that each unit is among the `k` best by scores learned anew from other data of the same size.

    With y the score (its logarithm if none is negative), e_j the standard error of y_j (root mean square over the
    replicas and over the nearest units in order, without what moves all units alike), and r = 1 - mean(e^2) / var(y),
    at least 0, the share of the spread between units that is no noise: y_j anew is taken as normal about
    mean(y) + r (y_j - mean(y)) with the variance (1 + r) e_j^2, the predictive law of a second measurement after a
    first. Where nothing but noise, or nothing at all, tells the units apart all probabilities are k / K.

    Args:
        score: of each unit [K], higher = keep.
        replicas: see `Scores.replicas`, [2 R, K].
        k: units that stay.
        rows: row of each unit where the same number stays in every row, [K]; None: all are compared with all.
        seed: of the Monte Carlo estimate.

    Returns:
        fp32 [K] on the CPU; sums to k.

    Raises:
        ConfigError: `k` is not between 1 and K.
    """
    units = len(score)
    if not 1 <= k <= units:
        raise ConfigError("keep_probability", f"k = {k} is not between 1 and {units}", "give a kept count")
    if k == units:
        return torch.ones(units, dtype=torch.float32, device="cpu")
    y, apart = comparable(score, replicas)
    variance = error_variance(y, apart)
    spread = y.var()
    real = 0.0 if spread == 0 else float((1 - variance.mean() / spread).clamp(min=0))
    centre, std = y.mean() + real * (y - y.mean()), ((1 + real) * variance).sqrt()
    std = std.clamp_min(float(TIE * y.abs().max().clamp_min(TIE)))
    draws = max(256, min(DRAWS, LARGEST // units))
    generator = torch.Generator().manual_seed(seed % 2**63)
    hits = torch.zeros(units, dtype=torch.float32, device="cpu")
    for start in range(0, draws, 512):
        noise = torch.randn(min(512, draws - start), units, generator=generator, dtype=torch.float64, device="cpu")
        hits += times_best(centre + std * noise, k, rows)
    return hits / draws


def comparable(score: Tensor, replicas: Tensor) -> tuple[Tensor, Tensor]:
    """Scores on the scale on which their noise is compared, and how far each pair of replicas lies to both sides of it.

    Scores that are never negative differ by factors: their logarithms, zeros as the smallest that is none. A pair lies
    half the logarithm of its ratio to both sides; a unit whose score a few examples carry can have one end at zero, so
    the difference counts for at most `WHOLE` of the sum.

    Returns:
        float64 [K] and [R, K].
    """
    y, ends = score.detach().double().cpu(), replicas.detach().double().cpu()
    upper, lower = ends[0::2], ends[1::2]
    if bool((y < 0).any()) or bool((y == 0).all()):
        return y, (upper - lower) / 2
    upper, lower = upper.clamp_min(0), lower.clamp_min(0)
    share = ((upper - lower) / (upper + lower).clamp_min(torch.finfo(y.dtype).tiny)).clamp(-WHOLE, WHOLE)
    return y.clamp_min(float(y[y > 0].min())).log(), share.atanh()


def error_variance(y: Tensor, apart: Tensor) -> Tensor:
    """Squared standard error of each score, averaged over its neighbours in order: float64 [K].

    Args:
        y: scores [K].
        apart: how far replicas lie from them [R, K].
    """
    units = len(y)
    apart = apart - apart.mean(1, keepdim=True)
    squares = apart.square().mean(0) * units / max(units - 1, 1)
    order = y.argsort(stable=True)
    sums = torch.cat([squares.new_zeros(1), squares[order].cumsum(0)])
    place = torch.arange(units, device="cpu")
    low, high = (place - NEIGHBOURS).clamp(min=0), (place + NEIGHBOURS + 1).clamp(max=units)
    found = torch.empty_like(squares)
    found[order] = (sums[high] - sums[low]) / (high - low)
    return found.clamp_min(0)


class Decided(Protocol):
    """A group's part of a plan, as far as it is told here."""

    @property
    def name(self) -> str:
        """Of the group."""

    @property
    def undecided(self) -> tuple[int, ...]:
        """Units whose fate is open."""


def undecided_in_words(groups: Iterable[Decided]) -> list[str]:
    """A line for every group that has undecided units, naming them; none for the others."""
    lines = []
    for group in groups:
        units = group.undecided
        more = f" and {len(units) - NAMED} more" if len(units) > NAMED else ""
        if units:
            lines.append(f"undecided in {group.name}: {', '.join(map(str, units[:NAMED]))}{more}")
    return lines
