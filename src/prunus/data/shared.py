"""A DataLoader of the user's that several processes share: each reads its own rows of every batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from prunus.runtime.processes import gathered_objects

SHARDED = ("num_replicas", "num_processes")
"""What samplers have that leave this process a part already: torch's and accelerate's."""


def shareable(part: Any) -> bool:
    """Whether a part is a DataLoader over examples by number that gives all processes the same."""
    if not isinstance(part, DataLoader) or isinstance(part.dataset, IterableDataset) or part.batch_sampler is None:
        return False
    samplers = (part.sampler, part.batch_sampler, getattr(part.batch_sampler, "sampler", None))
    return not any(hasattr(sampler, name) for sampler in samplers for name in SHARDED)


class SharedLoader:
    """What a DataLoader gives, a batch at a time, of which each process reads every `world`-th row.

    All draw the order as the first process does, so that together they see the batches that one would see.

    Args:
        loader: over a data set that is read by number, without a sampler of this process alone.
        rank: this process.
        world: number of processes.

    Attributes:
        whole: rows of the batch that was given last, over all processes.
    """

    def __init__(self, loader: DataLoader[Any], rank: int, world: int) -> None:
        self.given, self.rank, self.whole = loader, rank, 0
        self.dataset, self.sampler = loader.dataset, loader.sampler
        self.rows = _Rows(loader.batch_sampler, rank, world)
        self.loader = DataLoader(
            loader.dataset,
            batch_sampler=self.rows,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            prefetch_factor=loader.prefetch_factor,
        )

    def __iter__(self) -> Iterator[Any]:
        self.rows.sizes.clear()
        first = gathered_objects(torch.get_rng_state())[0]
        # The first process draws on, as one alone would; the others draw the same once, and go on with their own,
        # if they have some of their own.
        alike = torch.equal(torch.get_rng_state(), first)
        with nullcontext() if alike else torch.random.fork_rng(devices=[]):
            torch.set_rng_state(first)
            batches = iter(self.loader)
            batch = next(batches, None)
        while batch is not None:
            self.whole = self.rows.sizes.popleft()
            yield batch
            batch = next(batches, None)

    def __len__(self) -> int:
        return len(self.given)

    def set_epoch(self, epoch: int) -> None:
        """Tell the user's samplers which pass begins."""
        samplers = (self.given.sampler, self.given.batch_sampler, getattr(self.given.batch_sampler, "sampler", None))
        for setter in {id(p): getattr(p, "set_epoch", None) for p in (*samplers, self.dataset)}.values():
            if callable(setter):
                setter(epoch)


class _Rows:
    """This process's rows of the batches of a sampler; of one with fewer rows than processes, one row again."""

    def __init__(self, batches: Any, rank: int, world: int) -> None:
        self.batches, self.rank, self.world = batches, rank, world
        self.sizes: deque[int] = deque()

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self.batches:
            rows = list(batch)
            self.sizes.append(max(len(rows), self.world))
            yield rows[self.rank :: self.world] or [rows[self.rank % len(rows)]]

    def __len__(self) -> int:
        return len(self.batches)
