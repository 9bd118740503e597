"""Two things timed in turns, so that a machine that slows down slows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

SHORTEST_SAMPLE = 2e-3
"""Seconds; what is faster is run several times."""
NOTICEABLE = 0.95
"""Time after / time before from which on something counts as faster."""

Run = Callable[[], object]


def interleaved(
    before: Run,
    after: Run,
    repeats: int,
    warmup: int,
    wait: Run,
    clock: Callable[[], float] = time.perf_counter,
    shortest: float = SHORTEST_SAMPLE,
) -> tuple[list[float], list[float]]:
    """Milliseconds per pass of both, `repeats` samples each, taken in turns whose order alternates.

    Args:
        before: one pass of the one.
        after: one pass of the other.
        repeats: samples of each.
        warmup: untimed passes of each.
        wait: returns when the device is idle.
        clock: seconds.
        shortest: seconds of a sample, which holds so many passes; the longer, the less the other one's use of the
            caches is in it.
    """
    for run in (before, after):
        for _ in range(warmup):
            run()
    runs = (before, after)
    counts = [_passes(run, wait, clock, shortest) for run in runs]
    samples: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        for which in (0, 1) if repeat % 2 == 0 else (1, 0):
            samples[which].append(1e3 * _timed(runs[which], counts[which], wait, clock) / counts[which])
    return samples


def best_of(runs: Sequence[Run], rounds: int, wait: Run, clock: Callable[[], float]) -> list[float]:
    """Least milliseconds per pass of each, after a first untimed one, of so many samples taken in turns."""
    for run in runs:
        run()
    counts = [_passes(run, wait, clock) for run in runs]
    samples = [[_timed(run, n, wait, clock) / n for run, n in zip(runs, counts, strict=True)] for _ in range(rounds)]
    return [1e3 * min(column) for column in zip(*samples, strict=True)]


def _passes(run: Run, wait: Run, clock: Callable[[], float], shortest: float = SHORTEST_SAMPLE) -> int:
    """How many passes make a sample long enough for the clock."""
    once = max(_timed(run, 1, wait, clock), 1e-7)
    return max(1, min(1000, round(shortest / once)))


def _timed(run: Run, passes: int, wait: Run, clock: Callable[[], float]) -> float:
    wait()
    start = clock()
    for _ in range(passes):
        run()
    wait()
    return clock() - start


def waiter(device: torch.device) -> Run:
    """A function that returns when the device is idle."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
