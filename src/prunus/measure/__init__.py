"""Time and memory, before and after."""

from prunus.measure.memory import peak_memory
from prunus.measure.speed import Comparison, compare

__all__ = [
    "Comparison",
    "compare",
    "peak_memory",
]
