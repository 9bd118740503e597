"""Prunus: make trained PyTorch networks physically smaller by learning a probability distribution over what to keep."""

from prunus.apply import apply_
from prunus.graph.trace import trace
from prunus.plan import Plan

__version__ = "0.1.0"

__all__ = ["Plan", "__version__", "apply_", "trace"]
