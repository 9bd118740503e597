"""What reads units: the columns and whole rows that every call contracts, as root labels, before groups have names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from prunus.graph.engine import Engine, operation
from prunus.graph.groups import IntArray
from prunus.graph.labels import varying_dims
from prunus.graph.notes import Call
from prunus.graph.summed import Site, gated_before


@dataclass(frozen=True, eq=False)
class Reading:
    """A reader before its units are known: the root label of each position (-1: none)."""

    module: str
    dim: int
    weight: str
    axis: int
    roots: IntArray
    output: bool = False
    length: bool = False
    product: tuple[str, int] | None = None

    @classmethod
    def behind(cls, site: Site) -> Reading:
        """What a normalisation reads that lies behind a layer."""
        return cls(site.module, site.dim, site.weight, site.axis, site.roots, True, site.length)


def readings(engine: Engine, roots: IntArray, model: nn.Module, sites: list[Site]) -> list[Reading]:
    """What every call contracts: its columns, and the whole rows over them; not what is gated before anyway.

    Rows are looked up in the weight: a call may read positions that a later reshape made rows of.
    """
    found = []
    for call in engine.calls:
        columns = [] if call.inputs is None else [call.inputs]
        over = [r for r in engine.parameters[call.weight].rows if varying_dims(r) == (call.axis,)]
        rows = [r.reshape(-1) for r in over if not columns or r.numel() == len(columns[0])]
        if call.depthwise or not (columns or rows):
            continue
        position = 1 if operation(call.node) == "addmm" else 0
        before = gated_before(engine, model, roots, sites, call.node.args[position])
        product = None if gated_at_input(call, model) else call.product
        for line in (*columns, *rows):
            read = roots[line.numpy()]
            read = np.where(np.isin(read, list(before)), -1, read) if before else read
            found.append(Reading(call.module, call.input_dim, call.weight, call.axis, read, product=product))
    return found


def gated_at_input(call: Call, model: nn.Module) -> bool:
    """True if what is contracted is the input of a module that is a layer: gates stand there."""
    layer = model.get_submodule(call.module)
    known = isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)
    return call.at_input and (known or (call.weight == f"{call.module}.weight" and _is_called(layer)))


def _is_called(layer: nn.Module) -> bool:
    """True if the module has a forward of its own; those of a captured graph only hold the parameters."""
    return type(layer).forward is not nn.Module.forward
