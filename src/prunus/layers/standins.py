"""What stands in a module's place once the block that it was part of is gone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus.errors import DataError


class _StandIn(nn.Module):
    """Returns something of its first floating-point input, in the form in which the module did.

    Args:
        results: 0 for a tensor alone, else the length of a tuple that begins with it.
    """

    def __init__(self, results: int = 0) -> None:
        super().__init__()
        self.results = results

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What is made of the first floating-point tensor among the arguments. Raises DataError if there is none."""
        found = next((t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()), None)
        if found is None:
            what = "there is no floating-point tensor among its arguments"
            raise DataError(type(self).__name__, what, "call it as the module in whose place it stands")
        made = self.made_of(found)
        return (made, *(None,) * (self.results - 1)) if self.results else made

    def made_of(self, x: Tensor) -> Tensor:
        """What is returned of `x`."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """How many results there are, for printing."""
        return f"results={self.results}" if self.results else ""


class ReturnsInput(_StandIn):
    """Returns its input: what is left of a block.

    Example:
        >>> ReturnsInput()(torch.ones(2))
        tensor([1., 1.])
    """

    def made_of(self, x: Tensor) -> Tensor:
        """`x` itself."""
        return x


class ReturnsZeros(_StandIn):
    """Returns zeros like its input: what is left of the branch of a residual sum.

    Example:
        >>> ReturnsZeros(2)(torch.ones(2))
        (tensor([0., 0.]), None)
    """

    def made_of(self, x: Tensor) -> Tensor:
        """Zeros like `x`."""
        return torch.zeros_like(x)
