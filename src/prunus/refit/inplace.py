"""Results that are written to after others have looked at them, or through a view: who shares memory with whom.

A network may fill a part of a tensor (`mask[:, 2:] = 1`), or change one that it uses again under its old name. Such
operations run in place, on memory of each network's own, and in the order of the graph. All others that write, as a
`relu_` whose operand nobody needs any more, are the same as operations that don't.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx

from prunus.graph.engine import operation

RETURNED = {"dropout", "feature_dropout", "alpha_dropout", "getitem", "identity"}
"""Operations whose result may be their operand, though no schema says so."""


@dataclass(frozen=True)
class Shared:
    """Nodes whose results lie in memory that is written to while others may still look at it.

    Attributes:
        nodes: of the graph, in its order.
        families: first node of each piece of memory -> all that lie in it, itself included.
    """

    nodes: tuple[fx.Node, ...]
    families: dict[fx.Node, tuple[fx.Node, ...]]

    @cached_property
    def root(self) -> dict[fx.Node, fx.Node]:
        """The first node of the memory that a node's result lies in."""
        return {n: root for root, members in self.families.items() for n in members}

    def order(self) -> list[tuple[fx.Node, fx.Node]]:
        """Pairs of nodes that must run in this order, beside those of which one needs the other's result."""
        place = {n: i for i, n in enumerate(self.nodes)}
        pairs = []
        for members in self.families.values():
            touching = sorted({*members, *(u for n in members for u in n.users)}, key=place.__getitem__)
            for write in filter(writes, members):
                pairs += [(n, write) if place[n] < place[write] else (write, n) for n in touching if n is not write]
        return pairs


def writes(node: fx.Node) -> bool:
    """Whether an operation changes its operand."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def shares(node: fx.Node) -> bool:
    """Whether the result of an operation may lie in the memory of its first operand."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return operation(node) in RETURNED
    first = node.target._schema.arguments[0].alias_info
    return first is not None or operation(node) in RETURNED


def shared_memory(nodes: Sequence[fx.Node]) -> Shared:
    """What is written to while something that is needed later still lies there.

    Args:
        nodes: of a graph, in its order.
    """
    place = {n: i for i, n in enumerate(nodes)}
    root: dict[fx.Node, fx.Node] = {}
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        operand = node.args[0] if shares(node) else node
        assert isinstance(operand, fx.Node)
        root[node] = root.get(operand, node)
        members.setdefault(root[node], []).append(node)

    def seen_later(write: fx.Node) -> bool:
        before = [n for n in members[root[write]] if place[n] < place[write]]
        return any(place[user] > place[write] for n in before for user in n.users)

    return Shared(
        tuple(nodes),
        {first: tuple(m) for first, m in members.items() if any(writes(n) and seen_later(n) for n in m)},
    )
