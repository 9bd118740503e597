"""In which order the nodes of a graph run so that what a layer has to make up for is known when it is refitted."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

from torch import fx

from prunus.refit.inplace import shared_memory
from prunus.refit.paths import Path, Step


def depths(nodes: Iterable[fx.Node], calls: Iterable[fx.Node]) -> dict[fx.Node, int]:
    """Layers on the longest way from an input to each node."""
    counted, found = set(calls), dict[fx.Node, int]()
    for node in nodes:
        found[node] = max((found[n] for n in node.all_input_nodes), default=0) + (node in counted)
    return found


def ordered(
    nodes: Sequence[fx.Node], paths: Mapping[fx.Node, Path]
) -> tuple[list[fx.Node], dict[fx.Node, tuple[Step, ...]]]:
    """The nodes, each after what it needs, and layers after the other sides of the sums behind them where that is open.

    Of two layers that end in the same sum the one with more layers before it comes last.

    Args:
        nodes: of a graph, in its order.
        paths: of each layer, see `path_behind`.

    Returns:
        The order; and the sums of each layer whose other side is known by then.
    """
    depth, place = depths(nodes, paths), {n: i for i, n in enumerate(nodes)}
    after: dict[fx.Node, set[fx.Node]] = {n: set(n.users) for n in nodes}
    for first, second in shared_memory(nodes).order():
        after[first].add(second)
    for layer, path in paths.items():
        for needed in path.stored:
            after[needed].add(layer)
    known: dict[fx.Node, tuple[Step, ...]] = {}
    for layer in sorted(paths, key=lambda n: (-depth[n], -place[n])):
        for step in paths[layer].sums:
            assert step.other is not None
            if _reaches(layer, step.other, after):
                continue
            after[step.other].add(layer)
            known[layer] = (*known.get(layer, ()), step)
    waiting = dict.fromkeys(nodes, 0)
    for node in nodes:
        for later in after[node]:
            waiting[later] += 1
    ready = [place[n] for n in nodes if not waiting[n]]
    heapq.heapify(ready)
    order = []
    while ready:
        node = nodes[heapq.heappop(ready)]
        order.append(node)
        for later in after[node]:
            waiting[later] -= 1
            if not waiting[later]:
                heapq.heappush(ready, place[later])
    return order, known


def _reaches(start: fx.Node, goal: fx.Node, after: Mapping[fx.Node, set[fx.Node]]) -> bool:
    seen, stack = {start}, [start]
    while stack:
        node = stack.pop()
        if node is goal:
            return True
        new = after[node] - seen
        seen |= new
        stack += new
    return False
