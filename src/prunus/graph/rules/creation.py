"""Tensors and sizes that are made in the graph; and what is done where there is no rule at all."""

from __future__ import annotations

import operator

from torch import fx

from prunus.graph.engine import Engine, Result, meta_shape, meta_value, operation
from prunus.graph.labels import Value, along
from prunus.graph.registry import rule
from prunus.graph.resizing import Resizing, shape_at


@rule("zeros", "ones", "full", rows=True, rewrite=shape_at(0), ignores_zeros=True)
@rule("new_zeros", "new_ones", "new_full", rows=True, rewrite=shape_at(1), ignores_zeros=True)
def fill(engine: Engine, node: fx.Node) -> Result:
    """There can be less of what is the same everywhere: it takes the units of what it meets."""
    shape = meta_shape(node.meta["val"])
    given = node.args[1 if operation(node).startswith("new_") else 0]
    batch = {d for d, s in enumerate(given) if isinstance(s, fx.Node) and operation(s) == "sym_size"}  # type: ignore[union-attr,arg-type]
    sizes = [(d, size) for d, size in enumerate(shape) if size > 1 and d not in batch]
    return Value(shape, [along(engine.new_free(size), dim, len(shape)) for dim, size in sizes])


def _dense_again(call: Resizing) -> None:
    """Whoever asks for the size of what became smaller gets the dense size: all that is computed from it is dense."""
    ratio = None if call.before is None else call.ratio(call.before, int(call.arguments[1]))
    if ratio is None:
        return
    (stays, of), copy = ratio, call.copy
    users = list(copy.users)
    with copy.graph.inserting_after(copy):
        dense = copy.graph.call_function(operator.mul, (copy, of))
    with copy.graph.inserting_after(dense):
        whole = copy.graph.call_function(operator.floordiv, (dense, stays))
    for user in users:
        user.replace_input_with(copy, whole)


@rule("sym_size", rewrite=_dense_again, ignores_zeros=True)
@rule("empty", "arange", "rand", "randn", "eye", "linspace", "scalar_tensor", "new_empty", "_assert_async",
      "_assert_scalar", ignores_zeros=True)  # fmt: skip
def create(engine: Engine, node: fx.Node) -> Result:
    """A tensor made in the graph: its size is a constant of the code, so nothing along it varies."""
    return meta_value(node.meta.get("val"))


def unknown(engine: Engine, node: fx.Node) -> Result:
    """No rule: every unit that comes near stays."""
    for operand in node.all_input_nodes:
        values = engine.values[operand]
        for value in values if isinstance(values, list) else [values]:
            engine.lock(value.planes, f"no rule for {operation(node)}", node, whole=not value.rows)
    return meta_value(node.meta.get("val"))
