"""What a network of a comparison may cost: a share of the dense one's MACs, or of its measured latency.

Latency is that of ONNX Runtime on one thread with one example, in CPU time, in turns with the dense network.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

import prunus
from options import smoking
from prunus.errors import BudgetError
from record import interleaved, ratio
from round_to import session

STEPS, HALVINGS = {"macs": 1, "latency": 12}, {"macs": 12, "latency": 3}
"""Even steps of a search, from the least cut on, up to the first that will do, and halvings of the last one.

Latencies don't fall evenly with what is cut, since runtimes like some widths: halving alone may pass the best by.
"""
SEARCHED, KEPT = 11, 41
"""Repeats of a timing while a ratio is searched for, and of the one that is written down."""


def macs_of(model: nn.Module, inputs: Any) -> int:
    """Of one example, counted as ours are."""
    graph = prunus.trace(model, inputs)
    return int(prunus.Plan.from_kept(graph, {}).before.macs)


def latency_of(model: nn.Module, dense: Callable[[], float], inputs: Any, repeats: int = SEARCHED) -> dict[str, float]:
    """Time over the dense network's: median and quartiles of the turns; and the dense network's time in ms.

    Args:
        model: smaller.
        dense: a timing of the dense one, see `timing`.
        inputs: example inputs, batch first.
        repeats: turns.
    """
    times = interleaved({"pruned": timing(model, inputs), "dense": dense}, 3 if smoking() else repeats)
    middle, low, high = ratio(times, "pruned", "dense")
    told = {"median": middle, "low": low, "high": high, "dense_ms": 1e3 * statistics.median(times["dense"])}
    return {name: round(value, 4) for name, value in told.items()}


def timing(model: nn.Module, inputs: Any) -> Callable[[], float]:
    """Seconds of one example, as a function."""
    with tempfile.TemporaryDirectory() as folder:
        return session(model, inputs[:1], Path(folder))


@dataclass(frozen=True)
class Limit:
    """A share of what the dense network costs.

    Attributes:
        resource: `macs` or `latency`.
        share: of the dense network's.
        dense: that network.
        inputs: example inputs, batch first.
    """

    resource: str
    share: float
    dense: nn.Module
    inputs: Any

    @classmethod
    def of(cls, target: int | str, dense: nn.Module, inputs: Any) -> Limit:
        """From a cell's target: per cent of the MACs, or a text such as `latency 60`."""
        resource, _, percent = str(target).rpartition(" ")
        return cls(resource or "macs", float(percent) / 100, dense, inputs)

    @property
    def text(self) -> str:
        """As the package is asked."""
        return f"{self.resource}<={100 * self.share:g}%"

    @cached_property
    def whole(self) -> Any:
        """What the dense network costs: its MACs, or its timing."""
        return macs_of(self.dense, self.inputs) if self.resource == "macs" else timing(self.dense, self.inputs)

    def met(self, model: nn.Module) -> bool:
        """Whether a network keeps within it."""
        if self.resource == "macs":
            return macs_of(model, self.inputs) <= self.share * self.whole
        return latency_of(model, self.whole, self.inputs)["median"] <= self.share

    def largest(self, cut: Callable[[float], nn.Module]) -> nn.Module | None:
        """The network of the least cut that is found to keep within it; None if none does.

        Args:
            cut: makes a network; 0 takes nothing, 1 everything. A share that it refuses with a BudgetError is too much.
        """
        steps, halvings = (2, 1) if smoking() else (STEPS[self.resource], HALVINGS[self.resource])
        low, high, best = (steps - 1) / steps, 1.0, None
        for place in range(1, steps):
            enough, best = self._tried(cut, place / steps)
            if enough:
                low, high = (place - 1) / steps, place / steps
                break
        for _ in range(halvings):
            middle = (low + high) / 2
            enough, found = self._tried(cut, middle)
            low, high, best = (low, middle, found or best) if enough else (middle, high, best)
        return best

    def _tried(self, cut: Callable[[float], nn.Module], gone: float) -> tuple[bool, nn.Module | None]:
        """Whether so much is enough, or too much, and the network if it keeps within the limit."""
        try:
            model = cut(gone)
        except BudgetError:
            return True, None
        met = self.met(model)
        return met, model if met else None
