"""One small file per family of operations. Importing this package registers every rule."""

from prunus.graph.rules import (
    contraction,
    elementwise,
    indexing,
    movement,
    normalisation,
    products,
    reduction,
    repeating,
    weights,
    windows,
)

__all__ = [
    "contraction",
    "elementwise",
    "indexing",
    "movement",
    "normalisation",
    "products",
    "reduction",
    "repeating",
    "weights",
    "windows",
]
