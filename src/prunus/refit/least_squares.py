"""One layer refitted: rows are sampled, moments taken, the price of a change chosen on rows that were held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunus.refit.calls import LayerCall, read_places, regressors, rows_of
from prunus.refit.moments import Moments, solved

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Prices of a change, relative to the mean square of the regressors; the best on held-out rows is taken."""
EVERY = 5
"""Every so many-th example is held out."""


@dataclass(frozen=True)
class Channels:
    """Which inputs and outputs of a layer stay: bool [channels]."""

    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Solution:
    """What came out of one layer's problem.

    Attributes:
        weight: the new weight, fp64, in the old one's shape; None if no change helps.
        constant: what is added to each output, fp64 [outputs].
        ridge: the price that was chosen.
        before: error of the old weights on held-out rows, relative to the spread of what is wanted.
        after: that of the new ones.
    """

    weight: Tensor | None
    constant: Tensor | None
    ridge: float
    before: float
    after: float


@dataclass
class LeastSquares:
    """The least-squares problem of one layer, gathered batch by batch.

    Attributes:
        call: the layer's call.
        weight: its weight in the dense network.
        channels: what stays.
        intercept: whether there is a place for a constant.
    """

    call: LayerCall
    weight: Tensor
    channels: Channels
    intercept: bool
    fitted: Moments = field(init=False)
    held: Moments = field(init=False)
    old: Tensor = field(init=False)

    def __post_init__(self) -> None:
        matrix = self.call.as_matrix(self.weight.detach().double())
        self.rows = self._of_groups(self.channels.inputs, self.taps).to(matrix.device)
        self.columns = self._of_groups(self.channels.outputs, 1).to(matrix.device)
        self.old = self._inner(torch.cat([matrix, torch.zeros_like(matrix[:, :1])], 1))
        size = (self.old.shape[0], self.old.shape[1] - 1, self.old.shape[2], matrix.device)
        self.fitted, self.held = Moments.empty(*size), Moments.empty(*size)

    @property
    def taps(self) -> int:
        """Positions of the input that one position of the output reads."""
        return 1 if self.weight.dim() < 3 else int(self.weight[0, 0].numel())

    @property
    def unknowns(self) -> int:
        """Numbers that each output of the layer is made with."""
        return self.old.shape[1]

    def add(self, source: Tensor, wanted: Tensor, result: Tensor, rows: Tensor, held: Tensor) -> None:
        """Take some rows of a batch in.

        Args:
            source: the layer's input in the masked network.
            wanted: what the layer should make, without its bias; of `result`'s shape.
            result: what it makes in the dense network.
            rows: numbers of rows of the output, int64 [N].
            held: which of them are held out, bool [N].
        """
        inputs, outputs = (rows_of(self.call, v, self.weight) for v in (source, wanted))
        place, inside = read_places(self.call, self.weight, source, result, rows)
        if self.call.groups == 1:
            inputs = inputs[:, self.channels.inputs.to(inputs.device)]
            outputs = outputs[:, self.channels.outputs.to(outputs.device)]
        x = regressors(self.call, inputs, place, inside)
        y = outputs.index_select(0, rows).reshape(len(rows), self.call.groups, -1)
        y = y if self.call.groups == 1 else y * self.columns
        for part, chosen in ((self.fitted, ~held), (self.held, held)):
            if bool(chosen.any()):
                part.add(x[chosen], y[chosen])

    def over_ranks_(self) -> None:
        """Add what the other processes gathered."""
        self.fitted, self.held = self.fitted.over_ranks(), self.held.over_ranks()

    def solve(self, ridges: Sequence[float] = RIDGES) -> Solution:
        """The price of a change is chosen on held-out rows, then all are fitted; old weights where none helps there."""
        judge = self.held if self.held.count else self.fitted
        spread = max(judge.spread(), 1e-300)
        before = judge.error(self.old)
        tried = {r: judge.error(solved(self.fitted, self.old, r, self.intercept)) for r in ridges}
        best = min(tried, key=tried.__getitem__)
        if not tried[best] < before:
            return Solution(None, None, 0.0, before / spread, before / spread)
        matrix = solved(self.fitted + self.held, self.old, best, self.intercept)
        weight, constant = self._written(matrix)
        return Solution(weight, constant, best, before / spread, tried[best] / spread)

    def _written(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The whole weight with the fitted part in its place, and what is added to each output."""
        whole = self.call.as_matrix(self.weight.detach().double()).clone()
        added = torch.zeros_like(whole[:, 0])
        columns = self.columns[:, None, :]
        if self.call.groups == 1:
            where = self.rows[0].nonzero(), self.columns[0].nonzero()[:, 0]
            whole[0][where] = matrix[0, :-1]
            added[0, where[1]] = matrix[0, -1]
        else:
            whole = torch.where(columns & self.rows[:, :, None], matrix[:, :-1], whole)
            added = torch.where(columns[:, 0], matrix[:, -1], added)
        return self.call.as_weight(whole, self.weight.shape), added.reshape(-1)

    def _of_groups(self, channels: Tensor, taps: int) -> Tensor:
        return channels.reshape(self.call.groups, 1, -1).expand(-1, taps, -1).reshape(self.call.groups, -1)

    def _inner(self, matrix: Tensor) -> Tensor:
        if self.call.groups > 1:  # rows of what goes are zero, and so is what is wanted there
            return matrix * self.columns[:, None, :]
        rows = torch.cat([self.rows[0], torch.ones_like(self.rows[0, :1])])
        return matrix[:, rows][:, :, self.columns[0]]
