"""Fixed-sequence testing: many hypotheses at the full level each, in an order that the held-out data had no say in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Found(Generic[T]):
    """Where a sequence ended.

    Attributes:
        kept: the last candidate that was shown; None if the first was not.
        failed: the first that was not; None if all were.
        tested: how many were.
    """

    kept: T | None
    failed: T | None
    tested: int


def search(candidates: Iterable[T], p_of: Callable[[T], float], level: float) -> Found[T]:
    """The last candidate before the first whose hypothesis can't be rejected; those behind it are not looked at.

    Whatever the dependence between them, a true hypothesis is rejected with at most probability `level`: it would have
    to be the first true one of the order, and that is tested at `level` (Angelopoulos et al. 2021, learn then test).

    Args:
        candidates: in an order fixed beforehand; made one by one, as far as they are asked for.
        p_of: a valid p-value of each.
        level: probability of a wrong rejection.

    Example:
        >>> search([0.9, 0.8, 0.7, 0.6], lambda share: 1 - share, 0.25).kept
        0.8
    """
    kept, tested = None, 0
    for candidate in candidates:
        tested += 1
        if p_of(candidate) > level:
            return Found(kept, candidate, tested)
        kept = candidate
    return Found(kept, None, tested)
