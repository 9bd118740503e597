"""A model's analysis without some of its blocks, as the groups and the costs of what is left."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup


def without_blocks(graph: Graph, names: Collection[str]) -> Graph:
    """The analysis of what is left: groups lose what lies in tensors that go; those of nothing else are locked.

    Args:
        graph: the analysed model.
        names: blocks that go.
    """
    if not names:
        return graph
    gone = set(graph.blocks.removal(names).tensors)
    made = {n for n in graph.computed if _stem(n) in {_stem(t) for t in gone}}
    gone |= made - {n for n in made if _stem(n) in {_stem(t) for t in graph.shapes if t not in gone}}
    lost = gone | {alias for alias, first in graph.aliases.items() if first in gone}
    return replace(
        graph,
        channel_groups=tuple(_left(g, lost) for g in graph.channel_groups),
        contractions=tuple(c for c in graph.contractions if c.weight not in lost),
        shapes={n: s for n, s in graph.shapes.items() if n not in lost},
        computed={n: s for n, s in graph.computed.items() if n not in lost},
        norms=tuple(n for n in graph.norms if n.tensor not in lost),
        selections={n: s for n, s in graph.selections.items() if s.tensor not in lost},
    )


def _stem(tensor: str) -> str:
    """The module that holds a tensor, also where it is computed there."""
    return tensor.partition(".parametrizations.")[0].rpartition(".")[0] or tensor


def _left(group: ChannelGroup, gone: set[str]) -> ChannelGroup:
    slots = tuple(s for s in group.slots if s.tensor not in gone)
    readers = tuple(r for r in group.readers if r.weight not in gone and r.stored not in gone)
    if len(slots) == len(group.slots) and len(readers) == len(group.readers):
        return group
    writers = tuple(s for s in group.writers if s.tensor not in gone)
    computed = tuple(s for s in group.computed if s.tensor not in gone)
    reason = group.locked or ("" if writers and readers else "it goes with a block")
    return replace(group, slots=slots, readers=readers, writers=writers, computed=computed, locked=reason or None)
