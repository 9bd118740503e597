"""Blocks: what lies on one side of a residual sum can go, and leaves the other side.

A sum is a block's if one side (the skip) goes into the other (the branch) and has its shape. With the branch at zero
the sum is its skip: so the branch, and all that nothing else reads, can go. Branches that are read elsewhere too, that
share weights with the rest, or whose last step no module makes (where a gate could stand) are found and locked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, fx

from prunus.graph.deadcode import written
from prunus.graph.engine import argument, operation, source_line
from prunus.graph.units.calls import Calls, calls_of

SAME = {"dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias", "detach", "to", "identity"}
MOVED = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "unsqueeze", "squeeze", "t", "_unsafe_view",
    "roll", "slice", "expand", "flip", "mul", "div",
}  # fmt: skip
"""Operations that make zeros of zeros: all elements again, in other places, or each times a factor."""
PRODUCTS = {"linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"}


@dataclass(frozen=True, eq=False)
class Sum:
    """A residual sum.

    Attributes:
        node: the sum.
        skip: the side that stays.
        branch: the side that can go.
        gate: the module whose output is the branch; "" where there is none.
    """

    node: fx.Node
    skip: fx.Node
    branch: fx.Node
    gate: str = ""


@dataclass(frozen=True, eq=False)
class Block:
    """One unit: it stays or goes.

    Attributes:
        name: of the module that then returns its input, or of the one that makes the branch.
        sums: whose branches go with it: several where it is a whole layer.
        locked: why it may not go, or None.
        source: source line of its last sum.
    """

    name: str
    sums: tuple[Sum, ...]
    locked: str | None = None
    source: str = ""

    def __str__(self) -> str:
        return f"{self.name}: a block" + (f"; {self.locked}" if self.locked else "")


@dataclass(frozen=True, eq=False)
class Flow:
    """A captured graph as blocks are looked for in it.

    Attributes:
        nodes: all nodes in order.
        calls: which module made which node.
        stored: placeholder of a parameter or buffer -> its first name.
    """

    nodes: tuple[fx.Node, ...]
    calls: Calls
    stored: Mapping[fx.Node, str]
    place: dict[fx.Node, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.place.update({n: i for i, n in enumerate(self.nodes)})

    def gone(self, sums: Iterable[Sum]) -> set[fx.Node]:
        """Nodes that nothing reads once these sums are their skips: operations, and stored tensors."""
        skips = {s.node: s.skip for s in sums}
        live: set[fx.Node] = set()
        waiting = [n for n in self.nodes if n.op == "output" or (n.op == "call_function" and not n.users)]
        waiting = [n for n in waiting if not is_assertion(n)]
        while waiting:
            node = waiting.pop()
            if node not in live:
                live.add(node)
                waiting += [skips[node]] if node in skips else node.all_input_nodes
        dead = {n for n in self.nodes if n not in live and (n.op == "call_function" or (n in self.stored and n.users))}
        return {n for n in dead if not is_assertion(n) or any(i in dead for i in n.all_input_nodes)}

    def whole(self, path: str, gone: set[fx.Node]) -> bool:
        """Whether all that a module computes is gone; what only repeats its input may be left."""
        inside = {n for n in self.calls.nodes(path) if not is_assertion(n)}
        left = inside - gone
        return left < inside and all(origin(n) not in inside for n in left)


def is_assertion(node: fx.Node) -> bool:
    """True if a node only checks what another one is."""
    return node.op == "call_function" and operation(node).startswith("_assert")


def find_blocks(
    graph: fx.Graph, stored: Mapping[fx.Node, str], modules: Collection[str], groups: Collection[str]
) -> tuple[tuple[Block, ...], Flow]:
    """Every block of a captured graph in data-flow order, whole layers behind the last of their parts.

    Args:
        graph: the captured graph.
        stored: placeholder of a parameter or buffer -> its first name.
        modules: names of the model's modules.
        groups: names of groups, which blocks can't have too.

    Returns:
        The blocks, locked ones too, and what they were found in.
    """
    flow = Flow(tuple(graph.nodes), calls_of(graph, modules), stored)
    found: list[Block] = []
    taken: dict[str, int] = {}
    for node in flow.nodes:
        residual = _residual(flow, node)
        if residual is None:
            continue
        sum_, path = residual
        gone = flow.gone([sum_])
        gate = _gate(flow, sum_, gone)
        reason = _locked(flow, sum_, path, gone) or ("" if gate else "no module makes what the branch adds")
        sum_ = Sum(sum_.node, sum_.skip, sum_.branch, gate)
        whole = "" if reason else next(iter(unchanged(flow, [sum_], gone)), "")
        name = whole or _named(flow, path, gone) or gate or flow.calls.innermost(node) or node.name
        name = f"{name}.block" if name in groups else name
        taken[name] = taken.get(name, 0) + 1
        name = name if taken[name] == 1 else f"{name}#{taken[name]}"
        found.append(Block(name, (sum_,), reason or None, source_line(node)))
    units = [*found, *_layers(flow, found)]
    return tuple(sorted(units, key=lambda b: (flow.place[b.sums[-1].node], len(b.sums)))), flow


def _residual(flow: Flow, node: fx.Node) -> tuple[Sum, set[fx.Node]] | None:
    """The sum, and the nodes on the way from its skip to its branch; None if the node is no residual sum."""
    if node.op != "call_function" or operation(node) != "add" or argument(node, 2, "alpha", 1) != 1:
        return None
    sides = node.args[:2]
    if len(sides) < 2 or not all(isinstance(s, fx.Node) and _like(s, node) for s in sides):
        return None
    for skip, branch in (sides, sides[::-1]):
        path = _between(flow, origin(skip), branch)  # type: ignore[arg-type]
        if branch in path and any(_is_product(n) for n in path):
            return Sum(node, skip, branch), path  # type: ignore[arg-type]
    return None


def _like(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta.get("val"), other.meta.get("val")
    same = isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and a.is_floating_point()
    return same and tuple(map(str, a.shape)) == tuple(map(str, b.shape))  # type: ignore[union-attr]


def _is_product(node: fx.Node) -> bool:
    return operation(node) in PRODUCTS or operation(node).startswith("conv")


def origin(node: fx.Node) -> fx.Node:
    """The node that made the same numbers first."""
    while operation(node) in SAME and node.args and isinstance(node.args[0], fx.Node) and _like(node, node.args[0]):
        node = node.args[0]
    return node


def _between(flow: Flow, start: fx.Node, end: fx.Node) -> set[fx.Node]:
    """Nodes that `start` goes into and that go into `end`, without those that only repeat `start`; with `end`."""
    first, seen, waiting = flow.place[start], set(), [end]
    while waiting:
        node = waiting.pop()
        if node not in seen and flow.place[node] > first:
            seen.add(node)
            waiting += node.all_input_nodes
    reached: set[fx.Node] = set()
    for node in sorted(seen, key=flow.place.__getitem__):
        inputs = node.all_input_nodes
        if isinstance(node.meta.get("val"), Tensor | list | tuple) and origin(node) is not start:
            reached |= {node} if any(n in reached or origin(n) is start for n in inputs) else set()
    return reached


def _locked(flow: Flow, sum_: Sum, path: set[fx.Node], gone: set[fx.Node]) -> str:
    """Why a branch can't go, or ""."""
    for node in sorted(path - gone, key=flow.place.__getitem__):
        inside = gone | path | {sum_.node}
        user = next((u for u in node.users if u not in inside), None)
        where = f" ({source_line(user)})" if user is not None and user.op == "call_function" else ""
        kind = "is an output of the model" if user is not None and user.op == "output" else "is read elsewhere"
        return f"what {flow.calls.innermost(node) or node.name} makes {kind} too{where}"
    for node in sorted(gone, key=flow.place.__getitem__):
        if node.op != "call_function":
            continue
        if any(n not in gone for n in written(node)):
            return f"it writes into what it is given ({source_line(node)})"
        shared = next((n for n in node.all_input_nodes if n in flow.stored and n not in gone), None)
        if shared is not None and _is_product(node):
            return f"its weight {flow.stored[shared]!r} is used elsewhere too"
    return ""


def _gate(flow: Flow, sum_: Sum, gone: set[fx.Node]) -> str:
    """The module whose output is zero where the branch is, or "" if there is none."""
    waiting = [sum_.branch]
    while waiting:
        node = waiting.pop(0)
        if node not in gone or node.op != "call_function":
            continue
        for path in flow.calls.around(node):
            if flow.calls.once(path) and flow.whole(path, gone) and node in flow.calls.results(path):
                return path
        if operation(node) in SAME | MOVED:
            waiting += [n for n in node.args[:2] if isinstance(n, fx.Node)]
    return ""


def _named(flow: Flow, path: set[fx.Node], gone: set[fx.Node]) -> str:
    """The outermost module of the branch that makes its last product, or ""."""
    last = max((n for n in path if _is_product(n)), key=flow.place.__getitem__)
    return next((p for p in flow.calls.around(last) if flow.whole(p, gone)), "")


def unchanged(flow: Flow, sums: Sequence[Sum], gone: set[fx.Node]) -> list[str]:
    """The outermost modules that return their input once these branches are gone."""
    skips = {s.node: s.skip for s in sums}
    inside = {path for s in sums if s.node not in gone for path in flow.calls.around(s.node) if path}
    found: list[str] = []
    for path in sorted(inside, key=lambda p: (p.count("."), p)):
        if any(path.startswith(f"{f}.") for f in found) or not flow.calls.once(path):
            continue
        results = {n for n in flow.calls.results(path) if n not in gone}
        sources = {_followed(n, skips) for n in results}
        if len(sources) == 1 and not sources & flow.calls.nodes(path):
            source = sources.pop()
            if all(_like(source, n) for n in results):
                found.append(path)
    return found


def _followed(node: fx.Node, skips: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """The node that holds the same numbers once each sum is its skip."""
    while True:
        if node in skips:
            node = skips[node]
            continue
        first = node.args[0] if node.op == "call_function" and node.args else None
        if not isinstance(first, fx.Node) or not _like(node, first):
            return node
        if operation(node) in SAME:
            node = first
        elif operation(node) == "relu" and operation(_followed(first, skips)) == "relu":
            node = first  # a second ReLU changes nothing
        else:
            return node


def _layers(flow: Flow, found: Sequence[Block]) -> list[Block]:
    """Modules with several sums in them that return their input once all of those are their skips, the innermost."""
    alone = {b.name for b in found}
    by_module: dict[str, list[Block]] = {}
    for block in found:
        for path in flow.calls.around(block.sums[0].node):
            if path:
                by_module.setdefault(path, []).append(block)
    layers: list[Block] = []
    for path in sorted(by_module, key=lambda p: (-p.count("."), p)):
        members = by_module[path]
        inner = [*layers, *(b for b in found if b.name in by_module)]
        if len(members) < 2 or path in alone or any(f"{b.name}.".startswith(f"{path}.") for b in inner):
            continue
        if any(b.locked for b in members):
            continue
        sums = [s for b in members for s in b.sums]
        gone = flow.gone(sums)
        kept = tuple(s for s in sums if s.node not in gone)
        if path in unchanged(flow, sums, gone):
            layers.append(Block(path, kept, None, members[-1].source))
    return layers
