"""Gumbel noise from a seed: the same numbers on every process, and numbers that serve several draws.

A number costs two logarithms; a draw of a small network's masks spends as much on its noise as on a training step. In
recycled noise a number serves `reuse` draws in a row, each time for another element: every draw by itself is one of
independent standard Gumbel numbers, draws near each other share numbers among different elements.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prunus.masks import compiled

FEWEST = 65_536
"""Fewer elements than these always get fresh noise: it costs little, and two draws would often meet a number again."""


class Numbers(NamedTuple):
    """Noise of one draw: element i takes `values[(start + i) % length]`.

    Attributes:
        values: standard Gumbel noise, fp32 [length], or longer: the first ones once more.
        start: of element 0.
        length: how many there are.
    """

    values: Tensor
    start: int
    length: int

    def as_rows(self, rows: int, n: int) -> Tensor:
        """[rows, n]."""
        if self.start == 0:
            return self.values[: rows * n].view(rows, n)
        return torch.cat([self.values[self.start : self.length], self.values[: self.start]]).view(rows, n)


class NoiseStream:
    """The noise of draws 0, 1, 2, ...: a function of seed and draw, whatever was asked before.

    Attributes:
        rows, n: shape of a draw.
        seed: of all of them.
        reuse: draws that a number serves; 1 for few elements.
    """

    def __init__(self, rows: int, n: int, seed: int, reuse: int = 1) -> None:
        self.rows, self.n, self.seed = rows, n, seed
        self.reuse = reuse if rows * n >= FEWEST else 1
        self._values: Tensor | None = None
        self._draw = -1

    def at(self, draw: int, device: torch.device) -> Numbers:
        """Noise of a draw. Recycled numbers change with the next call: ask again instead of keeping them."""
        count = self.rows * self.n
        if self.reuse == 1:
            return Numbers(gumbel(self.rows, self.n, (self.seed, draw), device).flatten(), 0, count)
        ahead = draw - self._draw
        if self._values is None or self._values.device != device or not 0 <= ahead < self.reuse:
            self._values, ahead = torch.empty(count + self.n, device=device), self.reuse
        for one in range(draw - ahead + 1, draw + 1):
            self._refresh(self._values, one)
        self._draw = draw
        # The third word keeps these apart from the seeds of the numbers.
        start = int(np.random.SFC64((self.seed, draw, 1)).random_raw() % count)
        return Numbers(self._values, start, count)

    def _refresh(self, values: Tensor, draw: int) -> None:
        """The block whose turn it is gets new numbers; before draw 0 too, so that draw 0 finds all blocks filled."""
        count = self.rows * self.n
        size, block = -(-count // self.reuse), draw % self.reuse
        part = values[block * size : min((block + 1) * size, count)]
        part.copy_(gumbel(1, len(part), (self.seed, draw + self.reuse), values.device)[0])
        values[count:] = values[: self.n]


def gumbel(rows: int, n: int, seed: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Standard Gumbel noise, fp32 [rows, n]; the same seed gives the same numbers on every process of a device type.

    On CPUs it is -log(-log(1 - u)) of 31 random bits, u = (i + 1/2) / 2^31: exact in the upper tail, where masks are
    decided. With and without numba the numbers agree to rounding.
    """
    if torch.device(device).type == "cpu":
        raw = np.random.SFC64(seed).random_raw((rows * n + 1) // 2).view(np.int32)[: rows * n]
        if compiled.available():
            return torch.from_numpy(compiled.gumbel(raw)).view(rows, n)
        u = torch.from_numpy(raw).bitwise_and_(2**31 - 1).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
        return u.neg_().log1p_().neg_().log_().neg_().view(rows, n)
    stream = torch.Generator(device).manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
    smallest = 2.0**-25  # half the generator's resolution: what an exponential of exactly zero is taken for
    noise = torch.empty(rows, n, device=device).exponential_(generator=stream)
    return noise.clamp_(min=smallest).log_().neg_()
