"""Draws that processes share: one stream of them for the examples of all, of which each takes the rows of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from prunus.runtime.dealing import own_share
from prunus.runtime.processes import gathered, rank
from prunus.runtime.randomstate import generator_states, restore_generators
from prunus.runtime.seeds import start_at

STRIDE = 15_485_863
"""Between the seeds of forward passes, in which a model draws for itself; no multiple of those between ranks."""


class Dealt:
    """Which draws are this process's: those that one process would make for the same examples.

    The generators have to stand alike on all processes where it is made. Samplers deal examples in turn, as
    `DistributedSampler` does; where processes have blocks of a batch that is said.

    Args:
        seed: of what the model draws for itself, in each process and forward pass apart.
        device: where draws are made.
        in_blocks: the first examples of a batch are the first process's, and so on.
    """

    def __init__(self, seed: int, device: torch.device, *, in_blocks: bool = False) -> None:
        self.seed, self.device, self.in_blocks = seed, device, in_blocks
        self.examples, self.whole = list[int](), 0
        self.passes = 0
        self._shared = generator_states(device)

    def share_(self, examples: int) -> float:
        """A batch begins: with how many examples here, which all tell each other.

        Returns:
            What the mean loss here counts in the mean over processes, so that every example counts alike.
        """
        sizes = [int(n) for n in gathered(torch.tensor(examples, device=self.device))]
        share = own_share(sizes, rank(), in_blocks=self.in_blocks)
        self.examples, self.whole = list(share.places), share.whole
        return examples * len(sizes) / share.whole

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Around a forward pass, in which the model may draw too (dropout): every process for itself."""
        self._shared = generator_states(self.device)
        start_at(self.seed + STRIDE * (self.passes + 1))
        self.passes += 1
        try:
            yield
        finally:
            restore_generators(self._shared)

    def draw(self, make: Callable[[int], Tensor], examples: int | None) -> Tensor:
        """This process's rows of a draw for all examples, or the same single row for all of them.

        Args:
            make: draws as many rows as it is told to.
            examples: rows that are wanted; None: one for the whole batch.
        """
        own = generator_states(self.device)
        restore_generators(self._shared)
        made = make(1 if examples is None else self.whole)
        if examples is not None:
            made = made[self.examples]
            if len(made) != examples:  # a model that is called with something else than its batch
                made = make(examples)
        self._shared = generator_states(self.device)
        restore_generators(own)
        return made
