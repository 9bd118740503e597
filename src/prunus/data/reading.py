"""Batches of examples that are read one by one, in processes of their own, as they are asked for."""

from __future__ import annotations

import os
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from prunus.data.sharing import Shares, mixed_seed
from prunus.errors import DataError
from prunus.runtime.entry import generators_kept

MOST_WORKERS = 4
"""Without a word no more processes read: each holds a batch or two in memory."""
WORTH_STARTING = 2.0
"""Seconds of reading in one pass from which on processes are started for it."""


@dataclass(frozen=True)
class Unreadable:
    """In place of an example that can't be read."""

    where: str
    what: str
    fix: str


def processors(world: int = 1) -> int:
    """How many processes may read besides a rank: one for every processor that it has, and none where it has one."""
    share = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if share // world < 2 else min(share // world, MOST_WORKERS)


class ReadBatches(Shares):
    """A re-iterable of batches over a data set that is read by number; see `Shares` for who gets what.

    Every example has a seed of its own, of the seed, the epoch and its number: what its reading draws (augmentation)
    depends neither on the number of workers nor on that of the processes.

    Args:
        dataset: `dataset[i]` is one example. If it has `raw` and `normalise`, examples are read by the first, and whole
            batches of them are finished by the second; it may have a `collate` of its own. One that can't be read
            (DataError) is left out of its batch, with a warning, if the attribute `skips` is true.
        batch_size: examples per batch, over all ranks together.
        shuffle: a new order every epoch.
        seed: of the order and of the augmentation.
        drop_last: leave out a last batch that is not full.
        rank: this process.
        world: number of processes.
        workers: processes that read; 0 reads in this one. None takes one for each processor, up to 4, where a pass
            takes longer than to start them.

    Raises:
        ConfigError: an impossible size, rank or world.
        DataError: fewer examples than ranks; when iterated over, an example that can't be read.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        workers: int | None = None,
    ) -> None:
        count = len(dataset)  # type: ignore[arg-type]
        super().__init__(count, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, rank=rank, world=world)
        self.dataset, self.workers = dataset, workers
        self.told: set[str] = set()

    def __iter__(self) -> Iterator[Any]:
        numbers = [[(int(i), mixed_seed(self.seed, self.epoch, int(i))) for i in mine] for mine in self.indices()]
        # Workers that are never asked for would be started all the same.
        loader = DataLoader(
            _Reading(self.dataset),
            batch_sampler=numbers,
            num_workers=min(self._readers(), len(numbers)),
            collate_fn=_Collating(getattr(self.dataset, "collate", default_collate)),
            generator=torch.Generator(),
        )
        left = iter(loader)
        while True:
            with generators_kept():
                found = next(left, None)
            if found is None:
                return
            if found[0] is not None or not self._passed_over(found[1]):
                yield self._finished(*found)

    def first(self) -> Any:
        """The first batch, read in this process: nobody is started for it."""
        alone = ReadBatches(
            self.dataset, self.batch_size, shuffle=self.shuffle, seed=self.seed, drop_last=self.drop_last,
            rank=self.rank, world=self.world, workers=0,
        )  # fmt: skip
        alone.epoch, alone.told = self.epoch, self.told
        return next(iter(alone), None)

    def _readers(self) -> int:
        """As asked; without a word it is the time of one example that decides, and no result hangs on it."""
        if self.workers is None:
            began = time.perf_counter()
            with generators_kept():
                _Reading(self.dataset)[0, 0]
            alone = self.count * (time.perf_counter() - began) / self.world
            self.workers = processors(self.world) if alone > WORTH_STARTING else 0
        return self.workers

    def _passed_over(self, broken: Sequence[Unreadable]) -> bool:
        """Whether a batch with no example that can be read may be missing: in training every process needs its own."""
        if not getattr(self.dataset, "skips", False) or (self.shuffle and self.world > 1):
            return False
        self._tell(broken)
        return True

    def _tell(self, broken: Sequence[Unreadable]) -> None:
        for one in broken:
            if one.where not in self.told:
                self.told.add(one.where)
                warnings.warn(f"left out: {one.where}: {one.what}", RuntimeWarning, stacklevel=4)

    def _finished(self, batch: Any, broken: Sequence[Unreadable]) -> Any:
        for one in broken:
            if batch is None or not getattr(self.dataset, "skips", False):
                raise DataError(one.where, one.what, one.fix)
        self._tell(broken)
        finish = getattr(self.dataset, "normalise", None)
        if finish is None:
            return batch
        return (finish(batch[0]), *batch[1:]) if isinstance(batch, tuple | list) else finish(batch)


class _Reading(Dataset[Any]):
    """The same data set, read under a seed for each example; refusals are handed over instead of raised."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.read = getattr(dataset, "raw", dataset.__getitem__)

    def __getitem__(self, numbered: tuple[int, int]) -> Any:
        index, seed = numbered
        torch.default_generator.manual_seed(seed)  # torch.manual_seed writes down a stack trace for CUDA each time
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            return self.read(index)
        except DataError as error:  # an exception with three arguments doesn't come out of a worker as it was
            return Unreadable(error.where, error.what, error.fix)


@dataclass(frozen=True)
class _Collating:
    collate: Any

    def __call__(self, examples: Sequence[Any]) -> tuple[Any, list[Unreadable]]:
        whole = [e for e in examples if not isinstance(e, Unreadable)]
        broken = [e for e in examples if isinstance(e, Unreadable)]
        return self.collate(whole) if whole else None, broken
