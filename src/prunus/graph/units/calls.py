"""Which module made which node of a captured graph."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import fx


@dataclass(frozen=True, eq=False)
class Calls:
    """The calls of modules.

    Attributes:
        stacks: node -> modules around it, the outermost first, by path.
        inside: path -> nodes made within calls of that module.
        keys: path -> names of its calls.
    """

    stacks: dict[fx.Node, tuple[str, ...]]
    inside: dict[str, set[fx.Node]]
    keys: dict[str, set[str]]

    def around(self, node: fx.Node) -> tuple[str, ...]:
        """Modules around a node, the outermost first; the model itself is none."""
        return self.stacks.get(node, ())

    def innermost(self, node: fx.Node) -> str:
        """The module that made a node, "" for the model itself."""
        return (self.around(node) or ("",))[-1]

    def nodes(self, path: str) -> set[fx.Node]:
        """Nodes made within calls of a module."""
        return self.inside.get(path, set())

    def results(self, path: str) -> set[fx.Node]:
        """Nodes of a module that are read outside of it."""
        inside = self.nodes(path)
        return {n for n in inside if any(u not in inside for u in n.users)}

    def once(self, path: str) -> bool:
        """True if the module is called exactly once."""
        return len(self.keys.get(path, ())) == 1


def calls_of(graph: fx.Graph, modules: Collection[str]) -> Calls:
    """The calls of modules in a captured graph, from what is noted at its nodes.

    Args:
        graph: the captured graph.
        modules: names of the model's modules; torch notes others too, for nodes that it makes itself.
    """
    found = Calls({}, {}, {})
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {} if node.op == "call_function" else {}
        entries = [(key, entry[0]) for key, entry in stack.items() if entry[0] and entry[0] in modules]
        found.stacks[node] = tuple(path for _, path in entries)
        for key, path in entries:
            found.inside.setdefault(path, set()).add(node)
            found.keys.setdefault(path, set()).add(key)
    return found
