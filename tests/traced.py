"""Networks of the zoo, made and traced once in each process: most tests ask only what the graph says."""

from __future__ import annotations

from functools import cache

from torch import nn

import prunus
from prunus.graph.grouping import Graph
from zoo import ZOO, Animal


@cache
def traced(name: str) -> tuple[Animal, nn.Module, Graph]:
    """An animal, its network and its graph; all tests share them, so copy what you change."""
    animal = ZOO[name]
    model = animal.make()
    return animal, model, prunus.trace(model, animal.inputs(2))
