"""What one call of a layer of experts shows: which experts each token is given, with which weight, what they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from prunus.errors import DataError

NONE = -1
"""In the place of an expert, where a token is given fewer than others."""


@dataclass(frozen=True)
class LastLinear:
    """The last linear layer inside each expert of a list.

    Attributes:
        name: within an expert.
        read: of a choice, what it reads of all tokens, [N, inputs].
        added: of a choice, what it adds to the product with its weight, [N, width].
    """

    name: str
    read: Callable[[int], Tensor]
    added: Callable[[int], Tensor]


@dataclass(frozen=True)
class Routed:
    """What one call of a layer's experts shows.

    Attributes:
        layer: name of the group of experts.
        chosen: number of the expert, int64 [N, choices]; -1 where a token is given fewer.
        weights: with which its output counts, [N, choices].
        made: of a choice, what the experts make of all tokens with weight one, [N, width].
        last: the last linear layers of experts that are modules of a list, where they have some.
    """

    layer: str
    chosen: Tensor
    weights: Tensor
    made: Callable[[int], Tensor]
    last: LastLinear | None = None


def not_shown(layer: str, what: str) -> DataError:
    """The refusal of a layer that shows nothing."""
    return DataError(f"layer {layer!r}", what, "use a method that needs no tokens per expert, such as dirichlet")
