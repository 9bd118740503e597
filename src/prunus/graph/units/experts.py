"""Experts: what a router chooses among can go, with its rows of the router's weight.

A router is a product of activations with a stored weight whose results a `topk`, or several `max`, choose from. Its
experts are what the module around both stores for each choice: three-dimensional weights with a slice per expert,
whatever else is looked up by the number of the chosen, or a list of as many modules. Without an expert the network is
the one whose router gives it the logit minus infinity: so it is masked, and so removal is proven.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import fx, nn

from prunus.graph.engine import argument, operation, source_line
from prunus.graph.groups import ChannelGroup, IntArray, Reader, Routing, Slot
from prunus.graph.units.blocks import PRODUCTS
from prunus.graph.units.calls import Calls, calls_of

LOOKUPS = {"index", "index_select", "embedding", "gather"}
"""Operations that look numbers up by the number of the chosen expert."""
SLICES = 3
"""Dimensions of a weight with a slice for each expert."""


@dataclass(frozen=True, eq=False)
class _Router:
    """A product whose results are chosen from.

    Attributes:
        node: the product.
        weight: placeholder of the stored tensor that it multiplies with.
        chosen: what chooses among all experts.
        inner: those within and among groups of experts, with the first dimension after the tokens.
        between: nodes from the product to the choice.
    """

    node: fx.Node
    weight: fx.Node
    chosen: list[fx.Node]
    inner: list[fx.Node]
    between: set[fx.Node]

    @property
    def experts(self) -> int:
        return _shape(self.node)[-1]


def find_experts(
    graph: fx.Graph,
    stored: Mapping[fx.Node, str],
    products: Mapping[fx.Node, tuple[str, int]],
    model: nn.Module,
    taken: Sequence[str],
) -> tuple[ChannelGroup, ...]:
    """A group for every layer of experts, in data-flow order.

    Args:
        graph: the captured graph.
        stored: placeholder of a parameter or buffer -> its first name.
        products: product with something stored -> the stored tensor and the how many-th product with it this is.
        model: the model.
        taken: names of the other groups.
    """
    routers = _routers(graph, stored)
    if not routers:
        return ()
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = calls_of(graph, modules)
    groups = []
    for router in routers:
        others = {r.node for r in routers} - {router.node}
        group = _group(router, others, stored, products, calls, modules)
        if group is not None:
            groups.append(replace(group, name=f"{group.name}.experts") if group.name in taken else group)
    return tuple(groups)


def _routers(graph: fx.Graph, stored: Mapping[fx.Node, str]) -> list[_Router]:
    found: dict[fx.Node, _Router] = {}
    for node in graph.nodes:
        if node.op != "call_function" or not _chooses(node):
            continue
        between, ends = _back(node, stored)
        if len(ends) != 1:
            continue
        product = ends.pop()
        weight = _stored_operand(product, stored)
        if weight is None or len(_shape(product)) < 2:
            continue
        router = found.setdefault(product, _Router(product, weight, [], [], set()))
        shape, experts = _shape(node.all_input_nodes[0]), router.experts
        grouped = len(shape) > 2 and math.prod(shape[-2:]) == experts
        (router.chosen if shape[-1] == experts and not grouped else router.inner).append(node)
        router.between.update(between)
    return [r for r in found.values() if r.chosen]


def _chooses(node: fx.Node) -> bool:
    """Whether an operation tells which of the last dimension's places are largest, and somebody asks."""
    if operation(node) == "topk":
        return True
    last = argument(node, 1, "dim") in (-1, len(_shape(node.args[0])) - 1) if operation(node) == "max" else False  # type: ignore[arg-type]
    return last and any(u.args[1] == 1 and u.users for u in node.users)


def _back(node: fx.Node, stored: Mapping[fx.Node, str]) -> tuple[set[fx.Node], set[fx.Node]]:
    """Nodes that a choice is made of up to the products, and these."""
    seen: set[fx.Node] = set()
    ends: set[fx.Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        here = waiting.pop()
        if here in seen or here in ends:
            continue
        if here.op == "call_function" and operation(here) in PRODUCTS:
            ends.add(here)
            continue
        seen.add(here)
        waiting += here.all_input_nodes if here not in stored else ()
    return seen, ends


def _stored_operand(product: fx.Node, stored: Mapping[fx.Node, str]) -> fx.Node | None:
    """The one matrix among a product's operands that is a stored tensor, moved or cast at most."""
    found = {_root(n) for n in product.all_input_nodes} & set(stored)
    matrices = [n for n in found if len(_shape(n)) == 2 and _shape(product)[-1] in _shape(n)]
    return matrices[0] if len(matrices) == 1 else None


def _root(node: fx.Node) -> fx.Node:
    """The node that a chain of operations on one tensor starts from."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node


def _shape(node: fx.Node) -> tuple[int, ...]:
    shape = getattr(node.meta.get("val"), "shape", ())
    return tuple(s if isinstance(s, int) else -1 for s in shape)


def _group(
    router: _Router,
    others: set[fx.Node],
    stored: Mapping[fx.Node, str],
    products: Mapping[fx.Node, tuple[str, int]],
    calls: Calls,
    modules: Mapping[str, nn.Module],
) -> ChannelGroup | None:
    experts, weight = router.experts, stored[router.weight]
    if router.node not in products or _shape(router.weight).count(experts) != 1:
        return None
    for path in (*reversed(calls.around(router.chosen[0])), ""):
        inside = calls.nodes(path) if path else set(router.node.graph.nodes)
        if others & inside:
            return None
        bank = _bank(path, inside, router, stored, modules)
        if bank:
            break
    else:
        return None
    name, slots = bank
    owner = weight.rpartition(".")[0]
    beside = [n for n in stored if n in router.between or n in map(_root, router.node.all_input_nodes)]
    vectors = [n for n in beside if n is not router.weight and _is_vector(n, experts)]
    units, number = _units(experts), products[router.node][1]
    readers = [Reader(owner, -1, units, weight, product=number, stored=weight, routing=True)]
    for node in (n for n in vectors if n in router.between and _added(n)):
        name_, dim = stored[node], _shape(node).index(experts)
        readers.append(Reader(name_.rpartition(".")[0], dim, units, name_, stored=name_, routing=True))
    held = [_slot(stored[n], _shape(n), _shape(n).index(experts)) for n in (router.weight, *vectors)]
    rows, least = _rows(router)
    return ChannelGroup(
        name=name,
        units=experts,
        slots=(*slots, *held),
        writers=tuple(slots),
        readers=tuple(readers),
        rows=rows,
        locked=_locked(router, path, inside, least, stored),
        source=source_line(router.node),
        routing=Routing(path, _choices(router), least, router.node.name),
    )


def _is_vector(node: fx.Node, experts: int) -> bool:
    """Whether a stored tensor has one number for each expert."""
    return experts in _shape(node) and math.prod(_shape(node)) == experts


def _units(experts: int) -> IntArray:
    return np.arange(experts)


def _slot(name: str, shape: Sequence[int], dim: int) -> Slot:
    return Slot(name, _units(shape[dim]).reshape([-1 if d == dim else 1 for d in range(len(shape))]))


def _bank(
    path: str, inside: set[fx.Node], router: _Router, stored: Mapping[fx.Node, str], modules: Mapping[str, nn.Module]
) -> tuple[str, list[Slot]] | None:
    """The module that holds the experts of a module, and where they lie in its tensors."""
    experts, within = router.experts, f"{path}." if path else ""
    held = {n: name for n, name in stored.items() if name.startswith(within) and n is not router.weight}
    first = {n: name for n, name in held.items() if _shape(n)[:1] == (experts,) and n not in router.between}
    sliced = {n for n in first if len(_shape(n)) >= SLICES and any(u in inside for u in n.users)}
    if sliced:
        owners = {first[n].rpartition(".")[0] for n in sliced}
        beside = {n for n in first if first[n].rpartition(".")[0] in owners and len(_shape(n)) < SLICES}
        looked_up = {n for n in first if any(operation(u) in LOOKUPS for u in _uses(n))}
        members = sorted(sliced | beside | looked_up, key=list(first).index)
        name = owners.pop() if len(owners) == 1 else path
        return name, [_slot(first[n], _shape(n), 0) for n in members]
    for name, module in modules.items():
        listed = isinstance(module, nn.ModuleList) and len(module) == experts
        if listed and name.startswith(within) and _alike(module):  # type: ignore[arg-type]
            return name, [s for i in range(experts) for s in _whole(f"{name}.{i}", modules[f"{name}.{i}"], i)]
    return None


def _uses(node: fx.Node) -> list[fx.Node]:
    """What reads a stored tensor, moved or cast at most."""
    found = []
    for user in node.users:
        found += _uses(user) if len(user.all_input_nodes) == 1 and operation(user) not in LOOKUPS else [user]
    return found


def _alike(experts: Iterable[nn.Module]) -> bool:
    """Whether all modules of a list hold tensors of the same names and shapes, and some at all."""
    held = [{n: tuple(t.shape) for n, t in e.state_dict().items()} for e in experts]
    return bool(held[0]) and all(h == held[0] for h in held)


def _whole(path: str, expert: nn.Module, number: int) -> list[Slot]:
    """All of what one module of a list holds, as one unit's."""
    named = [*expert.named_parameters(), *expert.named_buffers()]
    return [Slot(f"{path}.{n}", np.full((len(t), *[1] * (t.dim() - 1)), number)) for n, t in named if t.dim()]


def _added(node: fx.Node) -> bool:
    """Whether a stored vector is added to what it meets."""
    return all(operation(u) == "add" for u in _uses(node))


def _choices(router: _Router) -> int:
    several = [int(argument(n, 1, "k")) for n in router.chosen if operation(n) == "topk"]
    return max(several, default=len(router.chosen))


def _rows(router: _Router) -> tuple[IntArray | None, int]:
    """Which group of experts each belongs to where the router chooses among groups first, and how many have to stay."""
    experts, choices = router.experts, _choices(router)
    counts = {_shape(n)[-2] for n in router.between if len(_shape(n)) > 2 and math.prod(_shape(n)[-2:]) == experts}
    counts = {c for c in counts if 1 <= c < experts}
    groups = max(counts, default=1)
    inner = [n for n in router.inner if operation(n) == "topk"]
    within = [n for n in inner if len(_shape(n.all_input_nodes[0])) > 2]
    among = [n for n in inner if n not in within]
    deep = max((int(argument(n, 1, "k")) for n in within), default=1)
    wide = min((int(argument(n, 1, "k")) for n in among), default=groups)
    if groups == 1:
        return None, deep
    # Of fewer experts in the chosen groups than a token is given, what lies outside of them would be taken.
    least = max(deep, -(-choices // wide))
    return np.arange(experts) // (experts // groups), least * groups


def _locked(router: _Router, path: str, inside: set[fx.Node], least: int, stored: Mapping[fx.Node, str]) -> str | None:
    if any(u not in inside for u in router.weight.users):
        return f"the router's weight {stored[router.weight]!r} is read outside of {path} too"
    if least >= router.experts:
        return f"its router needs all {router.experts} experts"
    return None
