"""The least-squares problem of one layer: moments of sampled rows, a price of change chosen on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunus.refit.calls import LayerCall
from prunus.refit.moments import Moments, solved, solver, spaced
from prunus.runtime.precision import lower
from prunus.runtime.processes import summed

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Prices of a change, relative to the mean square of the regressors; the best on held-out rows is taken."""
JUDGED = 256
"""Outputs of a layer, evenly spaced, by which prices are compared."""
ROUNDS = 3
"""How often targets beyond a clamp's bounds follow what is made."""


@dataclass(frozen=True)
class Channels:
    """Which inputs and outputs of a layer stay: bool [channels]."""

    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Clamped:
    """Rows of a layer behind which numbers beyond bounds are all the same.

    Attributes:
        x: regressors, [N, G, P].
        wanted: targets, [N, G, Q].
        end: what the targets become behind the layer, where they meet the bounds, [N, G, Q].
        factor: by what a change of the target changes `end`, [N, G, Q]; 0 where nothing passes.
        held: which are held out, bool [N].
    """

    x: Tensor
    wanted: Tensor
    end: Tensor
    factor: Tensor
    held: Tensor

    @property
    def fitted(self) -> Clamped:
        """The rows that are not held out."""
        parts = (self.x, self.wanted, self.end, self.factor, self.held)
        return Clamped(*(t[~self.held] for t in parts))


@dataclass(frozen=True)
class Solution:
    """What came out.

    Attributes:
        weight: the new weight, fp64, in the old one's shape; None if no change helps.
        constant: what is added to each output, fp64 [outputs].
        ridge: the price that was chosen.
        before: error of the old weights on held-out rows, of some outputs, relative to the spread of what is wanted.
        after: that of the new ones, before they were fitted to all rows.
        reason: why no weight was found, or "".
        samples: rows of all processes together, where a weight was found.
    """

    weight: Tensor | None
    constant: Tensor | None
    ridge: float
    before: float
    after: float
    reason: str = ""
    samples: int = 0


@dataclass
class LeastSquares:
    """The problem of one layer, gathered batch by batch.

    Attributes:
        call: the layer's call.
        weight: its weight in the dense network.
        channels: what stays.
        intercept: whether there is a place for a constant.
        bounds: of a clamp behind the layer, or None.
        support: which numbers of the weight stay, bool; None: all that `channels` leaves.
    """

    call: LayerCall
    weight: Tensor
    channels: Channels
    intercept: bool
    bounds: tuple[float, float] | None = None
    support: Tensor | None = None
    fitted: Moments = field(init=False)
    held: Moments = field(init=False)
    old: Tensor = field(init=False)
    inside: Tensor | None = field(init=False)
    clamped: list[Clamped] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        matrix = self.call.as_matrix(self.weight.detach().double())
        taps = 1 if self.weight.dim() < 3 else int(self.weight[0, 0].numel())
        self.rows = self._of_groups(self.channels.inputs, taps)
        self.columns = self._of_groups(self.channels.outputs, 1)
        self.inside = None
        if self.support is not None:
            inside = self.call.as_matrix(self.support)
            matrix = matrix * inside
            self.inside = self._inner(torch.cat([inside, torch.zeros_like(inside[:, :1])], 1))[:, :-1]
        self.old = self._inner(torch.cat([matrix, torch.zeros_like(matrix[:, :1])], 1))
        size = (self.old.shape[0], self.old.shape[1] - 1, self.old.shape[2], matrix.device)
        self.fitted, self.held = Moments.empty(*size), Moments.empty(*size)

    @property
    def unknowns(self) -> int:
        """Numbers that each output of the layer is made with."""
        return int(self.old.shape[1])

    @property
    def inputs(self) -> Tensor | None:
        """Which input channels matter here; None: all."""
        return self.channels.inputs if self.call.groups == 1 else None

    def outputs(self, rows: Tensor) -> Tensor:
        """Rows of the layer's output as [N, G, Q], zero where outputs go."""
        if self.call.groups == 1:
            return rows[:, None, self.channels.outputs]
        return rows.reshape(len(rows), self.call.groups, -1) * self.columns

    def add(self, x: Tensor, wanted: Tensor, held: Tensor) -> None:
        """Take rows in: regressors [N, G, P], targets [N, G, Q], which of them are held out, bool [N]."""
        for part, chosen in ((self.fitted, ~held), (self.held, held)):
            if bool(chosen.any()):
                part.add(x[chosen], wanted[chosen])

    def solve(self, ridges: Sequence[float] = RIDGES, *, all_rows: bool = True) -> Solution:
        """The price of a change is chosen on held-out rows, then all are fitted; old weights where none helps there.

        Once: the moments are used up, since there is no room for more of them where layers are large.

        Args:
            ridges: the prices.
            all_rows: fit the held-out rows too in the end.
        """
        fitted, held = self.fitted.over_ranks(), self.held.over_ranks()
        if not (fitted.finite and held.finite):
            return Solution(None, None, 0.0, 0.0, 0.0, "what it reads or should make is not finite on these data")
        best, before, after = self._price(fitted, held, ridges)
        if not lower(after, than=before):
            return Solution(None, None, 0.0, before, before, "no change helps on held-out data")
        samples = int(fitted.count + held.count)
        every = fitted
        if all_rows:
            every += held
        del held, self.held
        solve = solver(every, best, self.intercept, self.inside)
        matrix = solve(every, self.old)
        for _ in range(ROUNDS if self.bounds else 0):
            matrix = solve(self._followed(every, matrix, all_rows), self.old)
        del solve, every, fitted, self.fitted
        weight, constant = self._written(matrix)
        return Solution(weight, constant, best, before, after, samples=samples)

    def _price(self, fitted: Moments, held: Moments, ridges: Sequence[float]) -> tuple[float, float, float]:
        """The cheapest price on held-out rows; the error there of the old weights, and at that price."""
        some, old = fitted.some(JUDGED), self.old[:, :, spaced(self.old.shape[2], JUDGED)]
        judge = held.some(JUDGED) if held.count else some
        spread = judge.spread()
        inside = None if self.inside is None else self.inside[:, :, spaced(self.old.shape[2], JUDGED)]
        best, least = _cheapest(ridges, lambda ridge: judge.error(solved(some, old, ridge, self.intercept, inside)))
        return best, judge.error(old) / spread, least / spread

    def _followed(self, every: Moments, matrix: Tensor, all_rows: bool) -> Moments:
        """The moments with targets that follow what is made wherever the bounds hide the difference."""
        assert self.bounds is not None
        low, high = self.bounds
        cross, square = torch.zeros_like(every.cross), torch.zeros_like(every.square)
        for part in (c if all_rows else c.fitted for c in self.clamped):
            x, wanted, end, factor = (t.transpose(0, 1) for t in (part.x, part.wanted, part.end, part.factor))
            made = x @ matrix[:, :-1].to(x.dtype) + matrix[:, -1:].to(x.dtype)
            here = end + factor * (made - wanted)
            there = torch.where(end <= low, here.clamp(max=low), torch.where(end >= high, here.clamp(min=high), end))
            change = torch.where(factor != 0, (there - end) / torch.where(factor != 0, factor, 1.0), 0.0)
            # The targets' own part is in the moments already, in fp64; a change of them bears single precision.
            cross[:, :-1] += x.transpose(1, 2) @ change
            cross[:, -1] += change.sum(1)
            square += (change.double() * (2 * wanted.double() + change)).sum(1)
        return Moments(every.count, every.gram, every.cross + summed(cross), every.square + summed(square))

    def _written(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The whole weight with the fitted part in its place, and what is added to each output."""
        whole = self.call.as_matrix(self.weight.detach().double()).clone()
        whole = whole if self.support is None else whole * self.call.as_matrix(self.support)
        added = torch.zeros_like(whole[:, 0])
        if self.call.groups == 1:
            where = self.rows[0].nonzero(), self.columns[0].nonzero()[:, 0]
            whole[0][where] = matrix[0, :-1]
            added[0, where[1]] = matrix[0, -1]
        else:
            columns = self.columns[:, None, :]
            whole = torch.where(columns & self.rows[:, :, None], matrix[:, :-1], whole)
            added = torch.where(columns[:, 0], matrix[:, -1], added)
        return self.call.as_weight(whole, self.weight.shape), added.reshape(-1)

    def _of_groups(self, channels: Tensor, taps: int) -> Tensor:
        return channels.reshape(self.call.groups, 1, -1).expand(-1, taps, -1).reshape(self.call.groups, -1)

    def _inner(self, matrix: Tensor) -> Tensor:
        if self.call.groups > 1:  # regressors that go are zero, and so is what is wanted of outputs that go
            return matrix * self.columns[:, None, :]
        rows = torch.cat([self.rows[0], torch.ones_like(self.rows[0, :1])])
        return matrix[:, rows][:, :, self.columns[0]]


def _cheapest(prices: Sequence[float], error: Callable[[float], float]) -> tuple[float, float]:
    """The price of least error and that error, from the middle one downhill: errors have one valley.

    Differences within the rounding of fp32 are none, so that processors agree.
    """
    place = len(prices) // 2
    least = error(prices[place])
    for step in (-1, 1):
        moved = False
        while 0 <= place + step < len(prices):
            found = error(prices[place + step])
            if not lower(found, than=least):
                break
            place, least, moved = place + step, found, True
        if moved:
            break
    return prices[place], least
