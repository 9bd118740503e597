"""Batches in pieces: where the memory does not hold a step, its gradient is added up over halves, quarters, or less."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from prunus.runtime.arguments import examples_in


@dataclass
class Pieces:
    """In how many pieces batches are taken.

    Attributes:
        number: of pieces; it grows, and never shrinks again.
    """

    number: int = 1

    def halve_(self, examples: int) -> bool:
        """Take pieces half as large, and say so; False where they hold one example already."""
        if self.number >= examples:
            return False
        self.number = min(2 * self.number, examples)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        told = f"out of memory: from here on every batch is taken in {self.number} pieces, whose gradients add up"
        warnings.warn(f"{told} (batch norms in training see a piece at a time)", RuntimeWarning, stacklevel=4)
        return True

    def of(self, inputs: Any, targets: Any) -> Iterator[tuple[Any, Any, float]]:
        """The pieces of a batch, each with its share of the examples."""
        examples = examples_in(inputs)
        if self.number == 1 or examples < 2:
            yield inputs, targets, 1.0
            return
        for rows in torch.arange(examples).chunk(min(self.number, examples)):
            first, last = int(rows[0]), int(rows[-1]) + 1

            def part(t: Tensor, first: int = first, last: int = last) -> Tensor:
                return t[first:last] if t.dim() and t.shape[0] == examples else t

            few = (tree_map_only(Tensor, part, given) for given in (inputs, targets))
            yield (*few, (last - first) / examples)  # type: ignore[misc]

    def state_dict(self) -> dict[str, int]:
        """As plain data."""
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with as many."""
        self.number = int(state["number"])


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the processor had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
