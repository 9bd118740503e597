"""Condensed layers: exactly k weights per output, stored as values and indices."""

from prunus.sparse.choose import condense_where_faster_
from prunus.sparse.layers import condense_, densify_

__all__ = [
    "condense_",
    "condense_where_faster_",
    "densify_",
]
