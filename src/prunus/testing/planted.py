"""A network in which it is known by construction what every unit is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from prunus.graph.grouping import Graph
from prunus.graph.trace import trace

WHOLE, PAIRS, MUTE, DEAD = range(0, 4), range(4, 8), range(8, 12), range(12, 16)
"""Units that carry one input alone; two and two that share one; copies that nothing reads; units that never fire."""
UNITS, INPUTS, EXAMPLES, BATCH = 16, 6, 1024, 64
GROUP = "0"


@dataclass(frozen=True)
class Planted:
    """The network, its analysis, and data that it fits up to noise.

    Attributes:
        model: linear, batch norm, linear; in eval mode; y is the sum of its inputs.
        graph: its analysis; the hidden units are the group GROUP.
        examples: inputs [2, 6] that it was traced with.
        batches: inputs [64, 6] and targets [64, 1], 16 of them.
    """

    model: nn.Module
    graph: Graph
    examples: Tensor
    batches: tuple[tuple[Tensor, Tensor], ...]


def planted_model(order: Tensor | None = None) -> nn.Module:
    """A fresh copy of the network; unit i stands at `order[i]`."""
    carried = torch.tensor([0, 1, 2, 3, 4, 4, 5, 5, 0, 1, 4, 5, 0, 0, 0, 0])
    read = torch.tensor([1.0] * 4 + [0.5] * 4 + [0.0] * 4 + [1.0] * 4)
    fires = torch.tensor([1.0] * 12 + [0.0] * 4)
    place = torch.arange(UNITS) if order is None else order
    model = nn.Sequential(nn.Linear(INPUTS, UNITS, bias=False), nn.BatchNorm1d(UNITS), nn.Linear(UNITS, 1, bias=False))
    tensors: Mapping[str, Tensor] = model.state_dict()
    with torch.no_grad():
        tensors["0.weight"].zero_()
        tensors["0.weight"][place, carried] = fires
        tensors["1.weight"][place] = fires
        tensors["2.weight"][0, place] = read
    return model.eval()


@cache
def planted() -> Planted:
    """The planted problem, made and traced once in a process."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, INPUTS, generator=generator)
    y = x.sum(1, keepdim=True) + 0.3 * torch.randn(EXAMPLES, 1, generator=generator)
    with torch.random.fork_rng(devices=[]):
        model = planted_model()
        graph = trace(model, x[:2])
    return Planted(model, graph, x[:2], tuple(zip(x.split(BATCH), y.split(BATCH), strict=True)))
