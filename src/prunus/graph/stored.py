"""Weights that are computed from stored tensors alone: casts, views, masks, scales, sums, norms of parameters.

Their labels are those of the tensors that they are made of, so that removal edits those. Here such a value gets a
name, and it is noted which stored dimension lies along which of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, fx

from prunus.graph.engine import Engine, Result, module_path, operation
from prunus.graph.labels import Value, along
from prunus.graph.notes import Lies
from prunus.graph.registry import RULES

CASTS = ("to", "_to_copy", "type_as")
"""Their second argument only tells a dtype or a device."""


def values_of(result: Result) -> list[Value]:
    """What a node returned, as a list."""
    return result if isinstance(result, list) else [result]


def note_stored(engine: Engine, node: fx.Node) -> None:
    """Note on a node's result if it is computed from stored tensors alone, and which products read stored ones."""
    sources = node.all_input_nodes[:1] if operation(node) in CASTS else node.all_input_nodes
    operands = [v for n in sources if _is_tensor(n) for v in values_of(engine.values[n])]
    if all(o.stored is not None for o in operands):
        names = frozenset(name for o in operands for name in o.stored or ())
        for value in values_of(engine.values[node]):
            if value.stored is None:
                value.stored = names


def _is_tensor(node: fx.Node) -> bool:
    """False for sizes, which depend on the input but are no activations."""
    return not isinstance(node.meta.get("val"), int) and type(node.meta.get("val")).__name__ != "SymInt"


def note_product(engine: Engine, node: fx.Node) -> None:
    """Number the products of an activation with something stored, per stored tensor, in the order of their calls."""
    found = RULES.get(operation(node))
    sides = None if found is None else found.sides
    if sides is None:
        return
    operands = node.args[1] if operation(node) == "einsum" else node.args
    if operation(node) == "einsum" and len(operands) != 2:  # type: ignore[arg-type]
        return
    made = [engine.value(operands[side]).stored for side in sides]  # type: ignore[index]
    if sum(names is None for names in made) == 1:
        names = next(n for n in made if n is not None)
        for name in names:
            engine.stored.counts[name] = engine.stored.counts.get(name, -1) + 1
        if names:
            first = min(names)
            engine.stored.products[node] = (first, engine.stored.counts[first])


def weight_of(engine: Engine, node: fx.Node, value: Value) -> Value:
    """The weight that a call contracts: a stored tensor, or what is computed from some, under a name of its own."""
    if value.parameter is not None or not value.stored:
        return value
    name = _name(engine, node, value)
    known = engine.parameters.get(name)
    if known is None:
        engine.stored.computed[name] = lies_along(engine, value)
        value.parameter = name
        known = engine.parameters[name] = value
    for mine, other in zip(value.planes, known.planes, strict=False):
        if mine.shape == other.shape:
            engine.labels.unite(mine, other)
    return known


def _name(engine: Engine, node: fx.Node, value: Value) -> str:
    """`layer.weight` where the layer has no stored tensor of that name; else the largest tensor it is made of, marked.

    The same weight computed again has the same name.
    """
    path = module_path(node)
    name = f"{path}.weight" if path else "weight"
    if (name in engine.parameters and name not in engine.stored.computed) or not _shown_as(name, value):
        whole = [n for n in sorted(value.stored or ()) if n not in engine.stored.buffers] or sorted(value.stored or ())
        name = max(whole, key=lambda n: (len(engine.parameters[n].shape), np.prod(engine.parameters[n].shape))) + "*"
    while name in engine.stored.computed and not _same(engine.parameters[name], value):
        name += "*"
    return name


def _shown_as(name: str, value: Value) -> bool:
    """True if a tensor that the weight is made of is called after it, as torch's own norms, masks and others do."""
    path, _, attribute = name.rpartition(".")
    parametrized = f"{path}.parametrizations.{attribute}." if path else f"parametrizations.{attribute}."
    return any(tensor.startswith((f"{name}_", parametrized)) for tensor in value.stored or ())


def _same(known: Value, value: Value) -> bool:
    return (known.stored, known.shape) == (value.stored, value.shape)


def lies_along(engine: Engine, value: Value) -> tuple[Lies, ...]:
    """Which dimensions of the stored tensors lie along which of a value that is computed from them."""
    roots = engine.labels.roots()
    found = []
    for at in range(value.ndim):
        lines = [roots[p.expand([s if d == at else p.shape[d] for d, s in enumerate(p.shape)]).numpy()]
                 for p in value.varying(at)]  # fmt: skip
        if not lines:
            continue
        inside = np.unique(np.concatenate([line.reshape(-1) for line in lines]))
        for name in sorted(value.stored or ()):
            tensor = engine.parameters[name]
            for plane in tensor.planes:
                dims = [d for d, size in enumerate(plane.shape) if size > 1]
                own = roots[plane.numpy()].reshape(-1)
                if len(dims) == 1 and np.isin(own, inside).any():
                    whole = len(lines) == 1 and np.array_equal(own, lines[0].reshape(-1))
                    found.append(Lies(name, dims[0], at, whole))
    return tuple(found)


def lay_rows(engine: Engine, weight: Value, axis: int, line: Tensor, node: fx.Node) -> None:
    """Whole rows over dimension `axis` of a weight lie over the stored tensors that it is made of."""
    weight.rows.append(along(line, axis, weight.ndim))
    columns = engine.parameter_plane(weight, axis)
    if columns is not None:
        engine.inherit(columns, line)
    for lies in _along(engine, weight, axis):
        if lies.whole:
            tensor = engine.parameters[lies.tensor]
            tensor.rows.append(along(line, lies.dim, tensor.ndim))
        else:
            engine.lock([line], f"whole rows meet a part of {lies.tensor} in {operation(node)}", node)


def lay_elements(engine: Engine, weight: Value, elements: Tensor, node: fx.Node) -> bool:
    """Input positions of each output (a grouped convolution) in the weight and in all that it is made of.

    False if something it is made of lies otherwise; nothing was changed.
    """
    made = [engine.parameters[lies.tensor] for lies in _along(engine, weight, 1)]
    if any(lies.dim != 1 or not lies.whole for lies in _along(engine, weight, 1)):
        return False
    if any(not any(o.tensor == lies.tensor and o.dim == 0 and o.whole for o in _along(engine, weight, 0))
           for lies in _along(engine, weight, 1)):  # fmt: skip
        return False
    for value in (weight, *made):
        laid = elements.reshape(*elements.shape[:2], *[1] * (value.ndim - 2))
        previous = [p for p in value.planes if p.shape[0] > 1 and p.shape[1] > 1]
        for plane in previous:
            engine.labels.unite(plane, laid)
        if not previous:
            value.planes[:] = [p for p in value.planes if p.shape[1] == 1] + [laid]
    return True


def _along(engine: Engine, weight: Value, axis: int) -> list[Lies]:
    return [lies for lies in engine.stored.computed.get(weight.parameter or "", ()) if lies.at == axis]


def writing(engine: Engine, weight: str, axis: int) -> set[tuple[str, int]]:
    """(tensor, dimension) of the stored tensors whose rows are those that a weight writes along `axis`.

    Of several that lie there (a weight, its mask, its scale) those with most dimensions; parameters before buffers.
    """
    if weight not in engine.stored.computed:
        return {(weight, axis)}
    found = [lies for lies in engine.stored.computed[weight] if lies.at == axis]
    found = [lies for lies in found if lies.tensor not in engine.stored.buffers] or found
    most = max((engine.parameters[lies.tensor].ndim for lies in found), default=0)
    return {(lies.tensor, lies.dim) for lies in found if engine.parameters[lies.tensor].ndim == most}


def matching(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of 1-D lines, one of each side, whose labels repeat in the same pattern."""
    found = []
    rest = list(b)
    for line in a:
        other = next((o for o in rest if np.array_equal(_pattern(o), _pattern(line))), None)
        if other is not None:
            rest = [o for o in rest if o is not other]
            found.append((line, other))
    return found


def _pattern(line: Tensor) -> np.ndarray:  # type: ignore[type-arg]
    _, first, inverse = np.unique(line.numpy(), return_index=True, return_inverse=True)
    return first[inverse]  # type: ignore[no-any-return]
