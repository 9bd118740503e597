"""Which examples of a batch that several processes share are one's own, by their places in the batch of one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """A process's part of a batch.

    Attributes:
        places: of its examples in the whole batch.
        whole: examples of the batch in all processes together.
        before: examples of earlier batches.
    """

    places: range
    whole: int
    before: int = 0

    @property
    def numbers(self) -> Tensor:
        """Of its examples, int64 on the processor, counted over all batches as one process would."""
        return torch.arange(self.places.start, self.places.stop, self.places.step, device="cpu") + self.before

    @classmethod
    def alone(cls, examples: int, before: int = 0) -> Share:
        """A batch that no other process has a part of."""
        return cls(range(examples), examples, before)


def own_share(sizes: Sequence[int], number: int, *, in_blocks: bool = False, before: int = 0) -> Share:
    """A process's part of a batch.

    Args:
        sizes: examples of every process; where they can be, they were dealt in turn, as `DistributedSampler` does.
        number: of the process.
        in_blocks: the first examples are the first process's, and so on.
        before: examples of earlier batches.

    Example:
        >>> from prunus.runtime.dealing import own_share
        >>> [list(own_share(sizes, 1).places) for sizes in ((3, 2), (2, 3))]
        [[1, 3], [2, 3, 4]]
    """
    whole, world = sum(sizes), len(sizes)
    in_turn = not in_blocks and all(n == len(range(r, whole, world)) for r, n in enumerate(sizes))
    start = sum(sizes[:number])
    return Share(range(number, whole, world) if in_turn else range(start, start + sizes[number]), whole, before)
