"""One order of all units of all groups, from the first to go to the last, ties broken fairly and always the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Line = npt.NDArray[np.float64]


def merged_ranks(lines: Sequence[Line], seed: int) -> list[npt.NDArray[np.int64]]:
    """Place of every unit among all units: 0 goes first. All places differ, whatever ties.

    Equal scores of different groups are mixed so that any number of them takes the same share of each group's, up to a
    unit: a threshold among them empties no group. Where each group's share begins is drawn from the seed.

    Args:
        lines: for every group its scores in falling order.
        seed: of the draw.

    Returns:
        For every group the places, in falling order too.
    """
    generator = np.random.default_rng(seed % 2**63)
    shares = np.concatenate([_shares(line, generator) for line in lines])
    order = np.lexsort((shares, np.concatenate(lines)))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return np.split(places, np.cumsum([len(line) for line in lines])[:-1])


def _shares(line: Line, generator: np.random.Generator) -> Line:
    """Where in its run of equal scores each unit stands, in (0, 1), falling; evenly spaced from a drawn offset."""
    starts = np.flatnonzero(np.concatenate([[True], line[1:] != line[:-1]]))
    lengths = np.diff([*starts, len(line)])
    last = np.repeat(starts + lengths - 1, lengths)
    offsets = np.repeat(generator.random(len(starts)), lengths)
    return (last - np.arange(len(line)) + offsets) / np.repeat(lengths, lengths)
