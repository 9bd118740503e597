"""Input features as units: a layer that passes on a stored selection of its input, which pruning can shorten."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.runtime.fields import allows


class SelectInputs(nn.Module):
    """Passes on the selected features of its input; put it where features (pixels, sensors) should be prunable.

    The features form a group of their own whose only tensor is `index`: a removed feature is never read again, and the
    layers behind become smaller. The model's input keeps its size.

    Args:
        features: number of features in the input, at least 1; all are selected at first.
        dim: dimension of the input that holds them.

    Raises:
        ConfigError: fewer than one feature, or no whole number.

    Example:
        >>> net = nn.Sequential(prunus.SelectInputs(8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> [(group.name, group.units) for group in prunus.trace(net, torch.randn(2, 8)).groups()]
        [('0', 8), ('1', 16)]
    """

    index: Tensor

    def __init__(self, features: int, dim: int = -1) -> None:
        super().__init__()
        if not allows(int, features) or features < 1 or not allows(int, dim):
            what = f"features={features!r}, dim={dim!r}"
            raise ConfigError("SelectInputs", what, "give whole numbers, and at least one feature")
        self.features, self.dim = features, dim
        self.register_buffer("index", torch.arange(features))

    def forward(self, x: Tensor) -> Tensor:
        """The selected features of `x`, in the order of `index`."""
        return x.index_select(self.dim, self.index)

    def extra_repr(self) -> str:
        """What is selected, for printing."""
        return f"{len(self.index)} of {self.features}, dim={self.dim}"
