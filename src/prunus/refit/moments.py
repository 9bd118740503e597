"""Second moments of a linear problem, sums over any number of batches and processes, and what they say of a fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prunus.refit.supports import solved_within
from prunus.runtime.processes import summed


@dataclass
class Moments:
    """Sums of products of regressors (with a constant one as the last) and targets, fp64.

    Attributes:
        count: samples.
        gram: regressors with regressors, [G, P + 1, P + 1].
        cross: regressors with targets, [G, P + 1, Q].
        square: squares of targets, [G, Q].
    """

    count: float
    gram: Tensor
    cross: Tensor
    square: Tensor

    @classmethod
    def empty(cls, groups: int, regressors: int, targets: int, device: torch.device) -> Moments:
        """Of no sample."""
        p, zeros = regressors + 1, partial(torch.zeros, dtype=torch.float64, device=device)
        return cls(0.0, zeros(groups, p, p), zeros(groups, p, targets), zeros(groups, targets))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take samples in: regressors [N, G, P] and targets [N, G, Q]."""
        x, y = x.transpose(0, 1).double(), y.transpose(0, 1).double()
        x = torch.cat([x, torch.ones_like(x[:, :, :1])], 2)
        self.count += x.shape[1]
        turned = x.transpose(1, 2)
        self.gram += turned @ x
        self.cross += turned @ y
        self.square += y.square().sum(1)

    def over_ranks(self) -> Moments:
        """Those of all processes' samples together."""
        count = torch.tensor([self.count], dtype=torch.float64, device=self.gram.device)
        parts = [summed(t) for t in (count, self.gram, self.cross, self.square)]
        return Moments(float(parts[0]), parts[1], parts[2], parts[3])

    def __iadd__(self, other: Moments) -> Moments:
        self.count += other.count
        self.gram += other.gram
        self.cross += other.cross
        self.square += other.square
        return self

    def some(self, most: int) -> Moments:
        """Those of no more targets than that, evenly spaced."""
        chosen = spaced(self.cross.shape[2], most)
        return Moments(self.count, self.gram, self.cross[:, :, chosen], self.square[:, chosen])

    @property
    def finite(self) -> bool:
        """Whether all of it is."""
        return all(bool(t.isfinite().all()) for t in (self.gram, self.cross, self.square))

    def error(self, matrix: Tensor) -> float:
        """Mean over samples of the squared distance of `matrix` [G, P + 1, Q] from the targets, summed over these."""
        fitted = (matrix * (self.gram @ matrix - 2 * self.cross)).sum((0, 1, 2))
        return float((fitted + self.square.sum()).clamp_min(0)) / max(self.count, 1.0)

    def spread(self) -> float:
        """Variance of the targets, summed over these; their mean square if they don't vary, 1 if they are zero."""
        mean, square = self.cross[:, -1] / max(self.count, 1.0), self.square / max(self.count, 1.0)
        varies, whole = float((square - mean.square()).sum()), float(square.sum())
        return varies if varies > 1e-12 * whole else whole or 1.0


def spaced(count: int, most: int) -> slice:
    """Which of so many are looked at, evenly spaced and no more than `most`."""
    return slice(None, None, -(-count // most))


Solver = Callable[[Moments, Tensor], Tensor]
"""From moments with the Gram matrix that it was made for, and the old matrix, to the new one."""


def solver(moments: Moments, ridge: float, intercept: bool, support: Tensor | None = None) -> Solver:
    """What finds the matrix [G, P + 1, Q] of least squared error, held near an old one; the factoring is done once.

    min |Y - X M|^2 + ridge * d * |M - old|^2, with d the mean of the regressors' squares; no price on the constant.

    Args:
        moments: of the samples.
        ridge: price of a change, relative.
        intercept: whether the constant may change.
        support: which numbers may change, bool [G, P, Q]; None: all. Each column is then factored by itself, at every
            call, since all factors together may be larger than the memory.
    """
    size = moments.gram.shape[1] if intercept else moments.gram.shape[1] - 1
    gram = _priced(moments, ridge, size)
    if support is not None:
        ones = torch.ones_like(support[:, :1])
        may_change = torch.cat([support, ones], 1)[:, :size]

        def solve_within(there: Moments, old: Tensor) -> Tensor:
            new = old.clone()
            new[:, :size] += solved_within(gram, (there.cross - there.gram @ old)[:, :size], may_change)
            return new

        return solve_within
    # Symmetric, so that it can be factored where it is: of large layers it is the largest of all that is held.
    factor, failed = gram.mT, torch.empty(len(gram), dtype=torch.int32, device=gram.device)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    singular = _priced(moments, ridge, size) if bool(failed.any()) else None

    def solve(there: Moments, old: Tensor) -> Tensor:
        left = (there.gram @ old).neg_().add_(there.cross)[:, :size]
        new = old.clone()
        if singular is not None:
            new[:, :size] += torch.linalg.lstsq(singular, left).solution
        else:
            half = torch.linalg.solve_triangular(factor, left, upper=False)
            new[:, :size] += torch.linalg.solve_triangular(factor.mT, half, upper=True)
        return new

    return solve


def _priced(moments: Moments, ridge: float, size: int) -> Tensor:
    """The first rows and columns of the Gram matrix with the price of a change; see `solver`."""
    gram, inner = moments.gram[:, :size, :size].clone(), moments.gram.shape[1] - 1
    diagonal = gram.diagonal(dim1=1, dim2=2)
    scale = diagonal[:, :inner].mean(1, keepdim=True)
    # What is zero everywhere keeps its old weights; where nothing varies at all the scale is free.
    diagonal[:, :inner] += ridge * torch.where(scale > 0, scale, torch.ones_like(scale))
    if size > inner:
        diagonal[:, inner:].clamp_min_(1e-300)
    return gram


def solved(moments: Moments, old: Tensor, ridge: float, intercept: bool, support: Tensor | None = None) -> Tensor:
    """One solution; see `solver`."""
    return solver(moments, ridge, intercept, support)(moments, old)
