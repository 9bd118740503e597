"""What numbers a setting takes, said where it is annotated: `floor: Fraction = 0.02`. `fields` reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Range:
    """An interval of numbers, for annotations such as `Annotated[float, Range(above=0)]`.

    Attributes:
        least: smallest number in it.
        above: largest number below it, which is not in it.
        most: largest number in it.
        below: smallest number beyond it, which is not in it.

    Example:
        >>> 0.0 in Range(above=0, most=1), 1.0 in Range(above=0, most=1)
        (False, True)
        >>> print(Range(above=0, most=1))
        above 0, at most 1
    """

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def __contains__(self, value: Any) -> bool:
        low = self.least <= value and (self.above == -math.inf or value > self.above)
        return bool(low and value <= self.most and (self.below == math.inf or value < self.below))

    def __str__(self) -> str:
        if self.least > -math.inf and self.most < math.inf:
            return f"between {self.least:g} and {self.most:g}"
        ends = [f"above {self.above:g}"] if self.above > -math.inf else []
        ends += [f"of at least {self.least:g}"] if self.least > -math.inf else []
        ends += [f"at most {self.most:g}"] if self.most < math.inf else []
        ends += [f"below {self.below:g}"] if self.below < math.inf else []
        return ", ".join(ends)


Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(least=0)]
Fraction = Annotated[float, Range(least=0, most=1)]
Share = Annotated[float, Range(above=0, most=1)]
"""A fraction that is not nothing."""
BelowOne = Annotated[float, Range(least=0, below=1)]
Count = Annotated[int, Range(least=1)]
Natural = Annotated[int, Range(least=0)]
