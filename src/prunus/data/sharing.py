"""Which examples are in which batch, in which order, on which process: the same for data in memory and on disk."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from prunus.errors import ConfigError, DataError
from prunus.runtime.fields import allows


class Shares:
    """The numbers of the examples in every batch of this process.

    The same seed and epoch give the same batches. Under several processes the batches are cut from the data as in one
    process and each rank takes its interleaved share of every batch, so all ranks see equally many batches, no example
    twice, none left out.

    Args:
        count: examples there are.
        batch_size: examples per batch, over all ranks together.
        shuffle: a new order every epoch.
        seed: of the order and of the augmentation.
        drop_last: leave out a last batch that is not full.
        rank: this process.
        world: number of processes.

    Raises:
        ConfigError: an impossible size, rank or world.
        DataError: fewer examples than ranks.
    """

    def __init__(
        self, count: int, batch_size: int, *, shuffle: bool, seed: int, drop_last: bool, rank: int, world: int
    ) -> None:
        if not allows(int, batch_size):
            raise ConfigError("Batches", f"batch_size={batch_size!r} is no number of examples", "give for example 64")
        if batch_size < world or not 0 <= rank < world:
            what = f"batch_size={batch_size}, rank={rank}, world={world}"
            raise ConfigError("Batches", f"impossible: {what}", "give every rank at least one example per batch")
        if count < world:
            raise DataError("Batches", f"{count} examples for {world} ranks", "use more data or fewer processes")
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, seed
        self.drop_last, self.rank, self.world, self.epoch = drop_last, rank, world, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self.count, self.batch_size)
        # A rest that would leave a rank without examples is joined to the batch before it.
        return full if self.drop_last or (rest < self.world and full) else full + 1

    def indices(self) -> Iterator[Tensor]:
        """Of the examples of every batch, int64 on the CPU."""
        order = torch.arange(self.count, device="cpu")
        if self.shuffle:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
            order = torch.randperm(self.count, generator=generator, device="cpu")
        number = len(self)
        for batch in range(number):
            last = batch == number - 1 and not self.drop_last
            stop = self.count if last else (batch + 1) * self.batch_size
            yield order[batch * self.batch_size : stop][self.rank :: self.world]


def mixed_seed(*parts: int) -> int:
    """One seed of several numbers, in their order."""
    mixed = 0
    for part in parts:
        mixed = (mixed * 1_000_003 + part + 1) % (2**63)
    return mixed
