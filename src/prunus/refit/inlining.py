"""Parts of a captured graph that run under another setting (autocast, gradients), brought into the graph itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from prunus.graph.engine import operation
from prunus.graph.trace import REGIONS


def inlined_(module: fx.GraphModule, source: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Take regions apart, so that every operation is one of the module's own graph; the settings are lost.

    Args:
        module: what runs; changed.
        source: the captured program that it was made of, with nodes of the same names.

    Returns:
        Node of the program or of a region in it -> node of the module's graph that computes the same.
    """
    names = {n.name: n for n in source.graph.nodes}
    found = {names[n.name]: n for n in module.graph.nodes if n.name in names}
    for node in list(module.graph.nodes):
        if not _is_region(node):
            continue
        results = _copied_before(node, node, node.args, source, found)
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            if user.name in names:
                found[names[user.name]] = results[user.args[1]]
            module.graph.erase_node(user)
        found.pop(names.get(node.name, node), None)
        module.graph.erase_node(node)
    return found


def _is_region(node: fx.Node) -> bool:
    return node.op == "call_function" and operation(node) in REGIONS


def _copied_before(
    place: fx.Node, region: fx.Node, args: Sequence[Any], source: fx.GraphModule | None, found: dict[fx.Node, fx.Node]
) -> list[Any]:
    """Copy a region's operations to before `place`; what it returns.

    Args:
        place: of the graph that they go to.
        region: the call.
        args: its arguments, in that graph.
        source: the part of the captured program that has the region too, None if there is none.
        found: filled up.
    """
    number, name = next(
        (i, a.target) for i, a in enumerate(region.args) if isinstance(a, fx.Node) and a.op == "get_attr"
    )
    part, twin = _part(region.graph.owning_module, str(name)), _part(source, str(name))
    assert part is not None
    names = {} if twin is None else {n.name: n for n in twin.graph.nodes}
    values: dict[fx.Node, Any] = {}
    operands = iter(args[number + 1 :])
    results: list[Any] = []
    with place.graph.inserting_before(place):
        for node in part.graph.nodes:
            first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
            if node.op == "placeholder":
                values[node] = next(operands)
            elif node.op == "output":
                results = list(fx.node.map_arg(node.args[0], values.__getitem__))
            elif _is_region(node):
                inner = fx.node.map_arg(node.args, lambda n: values.get(n, n))
                values[node] = _copied_before(place, node, inner, twin, found)
            elif first is not None and isinstance(values.get(first), list):
                values[node] = values[first][node.args[1]]
            elif node.op != "get_attr":
                values[node] = place.graph.node_copy(node, values.__getitem__)
            if node.name in names and isinstance(values.get(node), fx.Node):
                found[names[node.name]] = values[node]
    return results


def _part(owner: nn.Module | None, name: str) -> fx.GraphModule | None:
    part = None if owner is None else dict(owner.named_children()).get(name)
    return part if isinstance(part, fx.GraphModule) else None
