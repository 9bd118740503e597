"""Dead code of a captured graph: what no output, no buffer and no input can tell from its absence.

A statistic that is computed and thrown away must not lock the features it is computed from.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx


def remove_dead_code_(graph: fx.Graph) -> None:
    """Remove every operation whose result is not used, in-place ones on tensors that are not used among them."""
    live = _live(graph)
    for node in reversed(list(graph.nodes)):
        if node not in live:
            graph.erase_node(node)


def _live(graph: fx.Graph) -> set[fx.Node]:
    storage = _Storages(graph)
    kept = [n for n in graph.nodes if n.op in ("placeholder", "get_attr", "output") or _acts_elsewhere(n)]
    # What is written into a parameter, a buffer or an input is seen outside.
    seen = {storage.of(n) for n in kept if n.op in ("placeholder", "get_attr")}
    live: set[fx.Node] = set()
    waiting = list(kept)
    while True:
        while waiting:
            node = waiting.pop()
            if node not in live:
                live.add(node)
                seen.add(storage.of(node))
                waiting += node.all_input_nodes
        waiting = [n for n in graph.nodes if n not in live and any(storage.of(w) in seen for w in written(n))]
        if not waiting:
            return live


def _acts_elsewhere(node: fx.Node) -> bool:
    """Assertions and the like; in-place operations are judged by what they write to."""
    return node.op == "call_function" and not written(node) and node.is_impure(impure_random=False)


def written(node: fx.Node) -> list[fx.Node]:
    """The arguments that an in-place operation writes to."""
    return [given for given, alias in _arguments(node) if alias.is_write]


def _arguments(node: fx.Node) -> Iterator[tuple[fx.Node, Any]]:
    """The tensors that an operation's result may share memory with, or that it writes to."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    for place, declared in enumerate(node.target._schema.arguments):
        given = node.args[place] if place < len(node.args) else node.kwargs.get(declared.name)
        if declared.alias_info is not None:
            for one in given if isinstance(given, list | tuple) else [given]:
                if isinstance(one, fx.Node):
                    yield one, declared.alias_info


class _Storages:
    """Which nodes may share memory: views, what in-place operations return, and members of lists."""

    def __init__(self, graph: fx.Graph) -> None:
        self._parent: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            shared = [given for given, _ in _arguments(node)]
            if node.target is operator.getitem:
                shared = node.all_input_nodes
            for other in shared:
                self._parent[self.of(node)] = self.of(other)

    def of(self, node: fx.Node) -> fx.Node:
        """One node that stands for all that may share its memory."""
        while (parent := self._parent.get(node, node)) is not node:
            node = parent
        return node
