"""One small file per family of operations. Importing this package registers every rule."""

from prunus.graph.rules import contraction, elementwise, movement, normalisation, products, reduction

__all__ = ["contraction", "elementwise", "movement", "normalisation", "products", "reduction"]
