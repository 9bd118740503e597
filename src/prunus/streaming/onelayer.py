"""One layer as a model of its own: its weights from shards, its inputs as they were recorded, its output alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from prunus.errors import DataError
from prunus.files.shards import Shards
from prunus.streaming.frame import Names
from prunus.streaming.layerlist import Call, LayerList

INNER = "layer"


class OneLayer(nn.Module):
    """A layer that is called with what the layers before made, and with the other tensors of its recorded call.

    Args:
        layer: it.
        call: one of its calls; what is no tensor in it stays as it is.
        place: which leaf is what the layer before made.
    """

    def __init__(self, layer: nn.Module, call: Call, place: int) -> None:
        super().__init__()
        self.layer = layer
        self.place, self.spec = place, call.spec
        self.fixed = [None if isinstance(leaf, Tensor) else leaf for leaf in call.leaves]
        self.others = [i for i, leaf in enumerate(call.leaves) if isinstance(leaf, Tensor) and i != place]

    def forward(self, hidden: Tensor, others: tuple[Tensor, ...]) -> Tensor:
        """What the layer hands on, of `hidden` [batch, tokens, width]."""
        leaves = list(self.fixed)
        leaves[self.place] = hidden
        for number, other in zip(self.others, others, strict=True):
            leaves[number] = other
        args, kwargs = tree_unflatten(leaves, self.spec)
        made = self.layer(*args, **kwargs)
        return made if isinstance(made, Tensor) else made[0]

    def inputs(self, hidden: Sequence[tuple[Tensor, Tensor]], calls: Sequence[Call]) -> list[tuple[Any, Any]]:
        """Its arguments by batch in both networks: recorded ones, with hidden states of each network.

        What all examples share is repeated for each, without a copy: the first dimension is then the batch everywhere.
        """
        found = []
        for (dense, smaller), call in zip(hidden, calls, strict=True):
            given = [call.leaves[i] for i in self.others]
            others = tuple(t.expand(len(dense), *t.shape[1:]) if _shared(t) else t for t in given)
            found.append(((dense, others), (smaller, others)))
        return found


def _shared(tensor: Tensor) -> bool:
    return tensor.dim() > 0 and tensor.shape[0] == 1


def check_alike(calls: Sequence[Call], name: str) -> None:
    """Refuse batches on which a layer is called in several ways, since one captured graph runs all of them.

    Args:
        calls: by batch.
        name: of the layer.

    Raises:
        DataError: texts of several lengths, or a mask with some batches alone.
    """

    def form(call: Call) -> Any:
        return call.spec, [tuple(leaf.shape[1:]) if isinstance(leaf, Tensor) else None for leaf in call.leaves]

    if any(form(call) != form(calls[0]) for call in calls):
        what = f"{name} is called in several ways: texts of several lengths, or padding in some batches alone"
        raise DataError("data", what, "give batches of texts of one length, without padding or with some in each")


def loaded_layer(
    frame: nn.Module, listed: LayerList, number: int, shards: Shards, names: Names, dtype: torch.dtype
) -> nn.Module:
    """A layer with its weights, which the frame has not.

    Args:
        frame: the model with its parameters on `meta`; not changed.
        listed: its layers.
        number: of the layer.
        shards: the weights.
        names: what they are called there.
        dtype: to compute in.
    """
    layer = copy.deepcopy(listed.of(frame)[number])
    fill_(layer, listed.name(number), shards, names, dtype)
    return layer.eval()


@torch.no_grad()
def fill_(layer: nn.Module, name: str, shards: Shards, names: Names, dtype: torch.dtype | None = None) -> None:
    """Give a layer its weights and stored buffers in memory; those that one name alone is known of keep it.

    Args:
        layer: changed.
        name: of the layer.
        shards: the weights.
        names: what they are called there.
        dtype: of what is no whole number; None: as it is stored.
    """
    for prefix, module in layer.named_modules(prefix=name):
        for table in (module._parameters, module._buffers):
            for attribute, old in list(table.items()):
                stored = names.get(f"{prefix}.{attribute}")
                if old is None or stored is None:
                    continue
                tensor = shards.read(stored)
                tensor = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
                table[attribute] = nn.Parameter(tensor, False) if isinstance(old, nn.Parameter) else tensor  # type: ignore[assignment]
