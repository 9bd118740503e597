"""Random draws that a seed alone decides, on any number of processes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prunus.runtime.processes import rank

RANK_STRIDE = 104729
"""Between the seeds of neighbouring ranks; the epochs of a loop lie a smaller prime apart and never meet it."""


@contextmanager
def seeded(seed: int, device: torch.device | None = None, *, alike: bool = False) -> Iterator[None]:
    """Within the context draws follow the seed; afterwards the generators are as they were.

    Args:
        seed: what rank 0, or the only process, starts from.
        device: where draws are made besides the CPU.
        alike: the same draws on every rank, for what decides something that all ranks must decide alike; otherwise
            each has its own, as dropout and samples that are averaged should.
    """
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        start_at(seed, alike=alike)
        yield


def start_at(seed: int, *, alike: bool = False) -> None:
    """Start the global generators anew, for loops that are `seeded` already and begin each epoch from its own seed."""
    torch.manual_seed(seed if alike else seed + RANK_STRIDE * rank())


def seed_of(seed: int, name: str) -> int:
    """A seed for one of several things, by its name: the same whatever the others are."""
    return (seed * 1_000_003 + zlib.crc32(name.encode())) % 2**63
