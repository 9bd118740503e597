"""One small file per family of operations. Importing this package registers every rule."""

from prunus.graph.rules import (
    contraction,
    creation,
    elementwise,
    indexing,
    joining,
    movement,
    normalisation,
    pieces,
    products,
    reduction,
    repeating,
    weights,
    windows,
)

__all__ = [
    "contraction",
    "creation",
    "elementwise",
    "indexing",
    "joining",
    "movement",
    "normalisation",
    "pieces",
    "products",
    "reduction",
    "repeating",
    "weights",
    "windows",
]
