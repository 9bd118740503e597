"""Which groups are merged with which: sets of one size, at the least sum of what each loses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import combinations

FEW = 1000
"""So many ways to share groups out are compared whole."""

Set = tuple[int, ...]


def best_sets(groups: int, size: int, loss: Callable[[Set], float]) -> list[Set]:
    """Sets of so many groups each that lose least together; of many groups, one set after another.

    Args:
        groups: how many there are, a multiple of `size`.
        size: of each set.
        loss: what a set loses.
    """
    known = cache(loss)
    if _ways(groups, size) <= FEW:
        return min(_shared(tuple(range(groups)), size), key=lambda sets: math.fsum(map(known, sets)))
    left, found = list(range(groups)), []
    while left:
        best: Set = (left[0],)
        while len(best) < size:
            best = min(((*best, g) for g in left if g not in best), key=known)
        found.append(tuple(sorted(best)))
        left = [g for g in left if g not in best]
    return found


def _ways(groups: int, size: int) -> int:
    sets = groups // size
    return math.factorial(groups) // (math.factorial(size) ** sets * math.factorial(sets))


def _shared(left: Sequence[int], size: int) -> Iterator[list[Set]]:
    """All ways to share out, each once: the first one's set, then the rest."""
    if not left:
        yield []
        return
    for others in combinations(left[1:], size - 1):
        rest = [g for g in left[1:] if g not in others]
        for sets in _shared(rest, size):
            yield [(left[0], *others), *sets]
