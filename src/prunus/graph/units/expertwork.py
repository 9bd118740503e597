"""The products of experts for cost accounting: every token is multiplied with the weights of those it is given.

How many tokens come to one expert depends on data; how many all of them are multiplied with together does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import fx

from prunus.graph.engine import depends_on_data, meta_shape
from prunus.graph.groups import ChannelGroup, Contraction
from prunus.graph.notes import Call
from prunus.graph.units.experts import SLICES


def with_experts_work(
    contractions: Sequence[Contraction],
    groups: Iterable[ChannelGroup],
    calls: Sequence[Call],
    nodes: Iterable[fx.Node],
    shapes: Mapping[str, Sequence[int]],
    batch: int,
) -> tuple[Contraction, ...]:
    """The contractions, with those of experts that were not seen, or whose number of tokens depends on data.

    Args:
        contractions: what the layers multiply.
        groups: all groups.
        calls: of layers.
        nodes: of the captured graph.
        shapes: of all stored tensors.
        batch: examples.
    """
    experts = [g for g in groups if g.routing is not None]
    if not experts:
        return tuple(contractions)
    named, found = {n.name: n for n in nodes}, list(contractions)
    varying = {c.weight for c in calls if depends_on_data(c.node)}
    for group in experts:
        assert group.routing is not None
        router = named[group.routing.node]
        tokens = next((c.positions for c in calls if c.node is router), _rows(router) / batch)
        positions = tokens * min(group.routing.choices, group.units) / group.units
        held = {s.tensor for s in group.writers}
        met = {c.weight for c in found} & held
        for number, contraction in enumerate(found):
            if contraction.weight in held & varying:
                found[number] = replace(contraction, positions=positions, experts=group.name)
        for slot in group.writers:
            if slot.tensor not in met and len(shapes[slot.tensor]) >= SLICES:
                owner = slot.tensor.rpartition(".")[0]
                found.append(Contraction(slot.tensor, positions, owner, group.source, experts=group.name))
    return tuple(found)


def _rows(node: fx.Node) -> int:
    return math.prod(meta_shape(node.meta["val"])[:-1])
