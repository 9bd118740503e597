"""Folding: multipliers of a group's units go into the weights that read them, exactly.

Units that a product of activations reads (dimensions of queries and keys) are multiplied into what writes them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup, IntArray, Reader
from prunus.runtime.entry import entry


@entry()
def fold_(model: nn.Module, graph: Graph, group: ChannelGroup, multipliers: Tensor) -> None:
    """Multiply what is gated by its unit's multiplier; the outputs are those of the gated model.

    Args:
        model: the network, changed in place.
        graph: its analysis.
        group: the gated group.
        multipliers: [K].

    Raises:
        ConfigError: a reader's weight is tied to another layer's, or is not stored; nothing was changed.
    """
    found = [(name, plane) for reader in group.readers for name, plane in _planes(model, graph, group, reader)]
    found = list({(name, plane.tobytes()): (name, plane) for name, plane in found}.values())
    for name, _ in found:
        owners = sum(first == graph.aliases.get(name, name) for first in graph.aliases.values())
        if owners > 1:
            raise ConfigError(
                f"weight {name!r}",
                f"it reads group {group.name!r} and is tied to another layer, which must not be scaled",
                "put the group's layers into ignored_layers",
            )
    with torch.no_grad():
        for name, plane in found:
            weight = model.get_parameter(name)
            one = torch.ones(1, device=weight.device, dtype=torch.float32)
            padded = torch.cat([multipliers.to(one), one])
            weight.mul_(padded[torch.from_numpy(plane).to(weight.device)].to(weight.dtype))


def _planes(model: nn.Module, graph: Graph, group: ChannelGroup, reader: Reader) -> list[tuple[str, IntArray]]:
    """Tensors to multiply for one reader, and the unit of each of their elements."""
    if reader.output:
        return _written(graph, reader)
    slots = [s for s in group.slots if s.tensor == reader.weight and s.dim in (reader.axis, -1)]
    if not slots:
        raise ConfigError(
            f"weight {reader.weight!r}",
            f"its columns of group {group.name!r} are not known",
            "put the layer into ignored_layers",
        )
    return [(reader.weight, slot.plane) for slot in slots]


def _written(graph: Graph, reader: Reader) -> list[tuple[str, IntArray]]:
    """Rows of the weight and of the bias that write the gated positions."""
    weight = graph.aliases.get(reader.weight, reader.weight)
    shape = [1] * len(graph.shapes[weight])
    shape[reader.axis] = -1
    bias = f"{reader.module}.bias"
    planes = [(weight, reader.units.reshape(shape))]
    return [*planes, (bias, reader.units)] if graph.aliases.get(bias, bias) in graph.shapes else planes
