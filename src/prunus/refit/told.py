"""What was refitted, what that won, and what was left alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refit:
    """What repair did with one layer.

    Errors are squared distances from what the dense network makes, relative to the variance of that, on data that the
    fit has not seen, of 256 outputs at most.

    Attributes:
        layer: the layer.
        before: error with its weights as they were.
        after: error with the new weights.
        ridge: what a change was priced at, relative; 0 where nothing was changed.
        samples: rows that were fitted.
        reason: why it was left as it was, or "".
    """

    layer: str
    before: float
    after: float
    ridge: float = 0.0
    samples: int = 0
    reason: str = ""

    @property
    def won_back(self) -> float:
        """The share of the error that the new weights take away, 0 to 1."""
        return 0.0 if self.reason or self.before <= 0 else 1 - self.after / self.before
