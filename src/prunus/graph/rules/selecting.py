"""Units selected by an index whose numbers are known before anything runs: the index itself is executed on the labels.

An index may be a buffer, a list or tensor in the code, or made by the code from such ones. Removal renumbers it: a
buffer with the other stored tensors, wherever it selects, and anything else in the rewritten graph. What is computed
from a buffer is not known: whoever loads a state into the model may change it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, fx

from prunus.graph.engine import Engine, example_size, meta_shape, operation
from prunus.graph.groups import Selection
from prunus.graph.labels import Value, along, varying_dims

CHOSEN = "units are selected by index"
LONGEST = 1 << 24
"""Numbers of a constant that is computed here."""
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8)
"""Dtypes of positions; others are masks."""
COPIES = ("to", "_to_copy", "clone", "detach", "alias", "contiguous")


def selected_by(engine: Engine, source: Value, dim: int, where: fx.Node, node: fx.Node) -> Value | None:
    """The value of `source` at known positions along one dimension; None if that is not what happens here."""
    planes = source.varying(dim)
    own = [*planes, *(r for r in source.rows if r.shape[dim] > 1)]
    lone = planes and all(varying_dims(p) == (dim,) and not engine.is_free(p) for p in own)
    if not lone or len(own) > len(planes) or source.stored is not None:
        return None
    positions = _positions(engine, where, source.shape[dim])
    if positions is None:
        return None
    line = engine.parameter_plane(source, dim)
    assert line is not None
    chosen = line[positions]
    buffer = _buffer(engine, where)
    held = None if buffer is None else engine.parameter_plane(buffer, 0)
    if held is not None:
        engine.labels.unite(held, chosen)
    name = "" if buffer is None else str(buffer.parameter)
    engine.selections[node] = Selection(dim, positions.numpy(), line.numpy(), name)
    shape = meta_shape(node.meta["val"])
    others = [p for p in source.planes if p.shape[dim] == 1]
    made = [along(chosen, dim, len(shape))] if len(chosen) > 1 else []
    if not made:
        engine.lock([chosen], "is the only unit that is selected", node)
    return Value(shape, [*others, *made], rows=list(source.rows))


def _positions(engine: Engine, where: fx.Node, size: int) -> Tensor | None:
    """The index as positions from 0 to `size` - 1, int64 [n]."""
    held = where.meta["val"]
    if held.dim() != 1 or held.dtype not in WHOLE:
        return None
    buffer = _buffer(engine, where)
    numbers = known(engine, where) if buffer is None else _given(buffer)
    if buffer is not None and any(_written(n) for n, value in engine.values.items() if value is buffer):
        return None
    if numbers is None or not numbers.numel() or int(numbers.min()) < -size or int(numbers.max()) >= size:
        return None
    return numbers.long() % size


def _buffer(engine: Engine, where: fx.Node) -> Value | None:
    """The buffer that an index is, but for copies and casts."""
    while operation(where) in COPIES:
        where = where.args[0]  # type: ignore[assignment]
    value = engine.value(where)
    return value if value.parameter in engine.stored.buffers else None


def tie_selections(engine: Engine) -> None:
    """A buffer can hold one set of numbers: units that it selects in several places go together.

    They stay if it is read for anything else too.
    """
    for name in sorted({s.tensor for s in engine.selections.values() if s.tensor}):
        value = engine.parameters[name]
        users = [user for node, held in engine.values.items() if held is value for user in _users(node)]
        made = {node: s for node, s in engine.selections.items() if s.tensor == name}
        lines = [torch.from_numpy(s.units) for s in made.values()]
        if all(user in made for user in users) and len({len(line) for line in lines}) == 1:
            for line in lines[1:]:
                engine.labels.unite(lines[0], line)
        else:
            engine.lock(lines, f"{CHOSEN}, and the index {name} is read elsewhere too", next(iter(made)))


def _users(node: fx.Node) -> Iterator[fx.Node]:
    for user in node.users:
        if operation(user) in COPIES:
            yield from _users(user)
        elif operation(user) != "_assert_tensor_metadata":  # checks what a cast was captured for
            yield user


def known(engine: Engine, node: fx.Node) -> Tensor | None:
    """The numbers of a node that is computed from constants alone, on the CPU; None if it is not, or is written to."""
    value = engine.values.get(node)
    if not isinstance(value, Value) or np.prod(value.shape, dtype=np.int64) > LONGEST or _written(node):
        return None
    if value.parameter is not None:
        return None
    if value.constant is not None:
        return _given(value)
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten" or not _computes(target):
        return None
    made: dict[fx.Node, Tensor | int] = {}
    for operand in node.all_input_nodes:
        found = known(engine, operand) if isinstance(operand.meta.get("val"), Tensor) else _fixed(operand)
        if found is None:
            return None
        made[operand] = found
    arguments, named = fx.map_arg((node.args, node.kwargs), lambda n: made[n])
    named = {k: torch.device("cpu") if k == "device" else v for k, v in named.items()}
    with torch.no_grad():
        result = target(*arguments, **named)
    return result if isinstance(result, Tensor) else None


def _given(value: Value) -> Tensor | None:
    held = value.constant
    return None if held is None or held.device.type == "meta" else held.detach().to("cpu", copy=True)


def _fixed(node: fx.Node) -> int | None:
    """A size that is the same for all inputs."""
    return example_size(node) if isinstance(node.meta.get("val"), int) else None


def _computes(target: torch._ops.OpOverload) -> bool:
    """True if what an operation returns follows from its operands, and it changes none."""
    drawn = torch.Tag.nondeterministic_seeded in target.tags or "empty" in target._schema.name
    return not drawn and (not target._schema.is_mutable or target is torch.ops.aten.detach_.default)


def _written(node: fx.Node) -> bool:
    """True if a node, or a view of it, is written to, or goes where that cannot be seen."""
    for user in node.users:
        target = user.target
        if user.op == "output":
            continue
        if not isinstance(target, torch._ops.OpOverload):
            return True
        if target is not torch.ops.aten.detach_.default:
            arguments = zip(target._schema.arguments, user.args, strict=False)
            if any(a.alias_info is not None and a.alias_info.is_write and given is node for a, given in arguments):
                return True
        if any(r.alias_info is not None for r in target._schema.returns) and _written(user):
            return True
    return False
