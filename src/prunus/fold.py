"""Folding: multipliers of a group's units go into the weights that read them, exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup, Slot


def fold_(model: nn.Module, graph: Graph, group: ChannelGroup, multipliers: Tensor) -> None:
    """Multiply the columns that read each unit by its multiplier; the outputs are those of the gated model.

    Args:
        model: the network, changed in place.
        graph: its analysis.
        group: the gated group.
        multipliers: [K].

    Raises:
        ConfigError: a reader's weight is tied to another layer's, or is not stored; nothing was changed.
    """
    found = [
        (name, slot) for name in dict.fromkeys(r.weight for r in group.readers) for slot in _columns(model, group, name)
    ]
    for name, _ in found:
        owners = sum(first == graph.aliases.get(name, name) for first in graph.aliases.values())
        if owners > 1:
            raise ConfigError(
                f"weight {name!r}",
                f"it reads group {group.name!r} and is tied to another layer, which must not be scaled",
                "put the group's layers into ignored_layers",
            )
    with torch.no_grad():
        for name, slot in found:
            weight = model.get_parameter(name)
            plane = torch.from_numpy(slot.plane).to(weight.device)
            padded = torch.cat([multipliers.to(weight.device, torch.float32), torch.ones(1, device=weight.device)])
            weight.mul_(padded[plane].to(weight.dtype))


def _columns(model: nn.Module, group: ChannelGroup, name: str) -> list[Slot]:
    """The group's places along the contracted dimension of a reader's weight."""
    axis = next(r.axis for r in group.readers if r.weight == name)
    slots = [s for s in group.slots if s.tensor == name and s.dim in (axis, -1)]
    if not slots:
        raise ConfigError(
            f"weight {name!r}",
            f"its columns of group {group.name!r} are not known",
            "put the layer into ignored_layers",
        )
    return slots
