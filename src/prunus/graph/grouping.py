"""From united labels to channel groups: components of labels with the same places in the same tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves_with_path

from prunus.graph.engine import Call, Engine, Result, source_line
from prunus.graph.groups import ChannelGroup, Contraction, ExampleInput, IntArray, Norm, Reader, Selection, Slot
from prunus.graph.labels import varying_dims
from prunus.graph.readings import Reading, gated_at_input, readings
from prunus.graph.rows import equal_rows, filled_rows, tie_groups, tie_unlike_slices, unshared_rows
from prunus.graph.summed import sites_of
from prunus.graph.unlisted import Unlisted, unlisted_layers
from prunus.graph.writers import judged_by, with_computed
from prunus.runtime.precision import dtype_name


@dataclass(frozen=True, eq=False)
class Graph:
    """The analysed model.

    Attributes:
        program: the captured program (its graph is what a rewritten model is made from).
        channel_groups: every group, prunable or locked, in data-flow order.
        contractions: every convolution and linear call, for MACs.
        shapes: shape of every parameter and buffer of the model, tied ones under their first name only.
        aliases: every name of a tied tensor, mapped to its first name.
        trainable: names of the parameters (as opposed to buffers).
        model: class name of the model.
        inputs: every tensor of the example inputs.
        labels: root label -> (number of its group, index of its unit).
        roots: root of every label.
        values: labels of every node's result.
        adopted: labels of positions that lie in a whole row, and the labels of those rows.
        followed: branches on data went the way of the example inputs.
        computed: shapes of the weights that are computed from stored tensors, under names of their own.
        norms: weights that are directions and lengths (weight norm).
        unlisted: layers that no group tells of, and why.
        selections: operations that select units by an index that is known before anything runs.
    """

    program: ExportedProgram
    channel_groups: tuple[ChannelGroup, ...]
    contractions: tuple[Contraction, ...]
    shapes: dict[str, tuple[int, ...]]
    aliases: dict[str, str]
    trainable: frozenset[str]
    model: str
    inputs: tuple[ExampleInput, ...]
    labels: dict[int, tuple[int, int]] = field(repr=False)
    roots: IntArray = field(repr=False)
    values: dict[fx.Node, Result] = field(repr=False)
    adopted: tuple[tuple[IntArray, IntArray], ...] = field(default=(), repr=False)
    followed: bool = False
    computed: dict[str, tuple[int, ...]] = field(default_factory=dict)
    norms: tuple[Norm, ...] = ()
    unlisted: tuple[Unlisted, ...] = ()
    selections: dict[fx.Node, Selection] = field(default_factory=dict, repr=False)

    def groups(self, *, locked: bool = False, inexact: bool = False) -> tuple[ChannelGroup, ...]:
        """The prunable groups in data-flow order; with `locked`, all; with `inexact`, inexact ones too."""
        return tuple(g for g in self.channel_groups if locked or g.prunable or (inexact and g.locked is None))

    def group(self, name: str) -> ChannelGroup:
        """The group of that name. Raises KeyError if there is none."""
        for group in self.channel_groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def explain(self) -> str:
        """The prunability report: what can be pruned, what is locked, why, at which source line."""
        lines = []
        for group in self.channel_groups:
            rows = f", equal counts in {group.multiple} rows" if group.rows is not None else ""
            if group.prunable:
                readers = ", ".join(_said(r) for r in group.readers)
                kind = "if asked " if group.inside_heads else "prunable "
                lines.append(f"{kind} {group.name}: {group.units} units{rows}, read by {readers}  [{group.source}]")
            elif group.locked is None:
                why = "a normalisation takes statistics across the units: removal is not masking"
                lines.append(f"inexact   {group.name}: {group.units} units{rows}; {why}  [{group.source}]")
            else:
                reason = group.locked
                lines.append(f"locked    {group.name}: {group.units} units{rows}; {reason}  [{group.source}]")
        lines += map(str, self.unlisted)
        free = [g for g in self.groups() if not g.inside_heads]
        units, total = sum(g.units for g in free), sum(g.units for g in self.channel_groups)
        lines.append(f"{units} of {total} units in {len(free)} of {len(self.channel_groups)} groups can go")
        return "\n".join(lines)


def _said(reader: Reader) -> str:
    return f"a norm behind {reader.module}" if reader.length else reader.module or reader.weight


def build_graph(engine: Engine, program: ExportedProgram, model: nn.Module, aliases: dict[str, str]) -> Graph:
    """Turn the finished label run into groups."""
    if engine.summed:
        first = engine.labels.roots()
        tie_unlike_slices(engine, _signatures(_tensor_planes(engine, first), len(first))[0], first)
    uneven: list[IntArray] | None = None
    while uneven is None or uneven:
        tie_groups(engine, uneven or ())
        uneven, roots = [], engine.labels.roots()
        tensors = _tensor_planes(engine, roots)
        writer, outputs = _writers(engine, roots)
        sites = sites_of(engine, model, roots)
        reasons, inexact, rows = _constraints(engine, roots, model, sites.reasons, uneven)
        inexact |= sites.unmasked
        members = _families(tensors, writer, reasons, inexact, rows, len(roots))
        rows = filled_rows(members, rows, engine, roots, reasons, uneven)
    readers = [*readings(engine, roots, model, sites.found), *map(Reading.behind, sites.found)]
    made = [(name, plane) for name, plane in tensors if name in engine.computed]
    tensors = [(name, plane) for name, plane in tensors if name not in engine.computed]
    whole = frozenset(_roots_of(engine.batched_rows, roots).tolist())
    judged = judged_by(engine, model)
    groups, labels = _make_groups(members, tensors, writer, outputs, reasons, inexact, rows, readers, whole, judged)
    groups = with_computed(groups, labels, made, judged)
    named = [*model.named_parameters(), *model.named_buffers()]
    return Graph(
        program=program,
        channel_groups=groups,
        contractions=tuple(_contraction(c, roots) for c in engine.calls if c.positions),
        shapes={name: tuple(tensor.shape) for name, tensor in named if name == aliases.get(name, name)},
        aliases=aliases,
        trainable=frozenset(name for name, _ in model.named_parameters()),
        model=type(model).__name__,
        inputs=_inputs(program),
        labels=labels,
        roots=roots,
        values=engine.values,
        adopted=tuple(engine.adopted),
        computed={name: engine.parameters[name].shape for name in engine.computed},
        norms=tuple(dict.fromkeys(engine.norms)),
        selections=engine.selections,
        unlisted=unlisted_layers(engine, program, model, groups, roots, reasons),
    )


def _contraction(call: Call, roots: IntArray) -> Contraction:
    over = tuple(roots[plane.reshape(-1).numpy()] for plane in call.over)
    return Contraction(call.weight, call.positions, call.module, source_line(call.node), over)


def _inputs(program: ExportedProgram) -> tuple[ExampleInput, ...]:
    """Every tensor of the example inputs; whole numbers with their range, so that others like them can be made."""
    args, kwargs = program.example_inputs or ((), {})
    leaves = [*tree_leaves_with_path(tuple(args)), *tree_leaves_with_path(dict(kwargs or {}))]
    return tuple(_input(keys, value) for keys, value in leaves if isinstance(value, Tensor))


def _input(keys: Any, value: Tensor) -> ExampleInput:
    path = tuple(next(k for k in (getattr(key, "idx", None), getattr(key, "key", None), getattr(key, "name", None))
                      if k is not None) for key in keys)  # fmt: skip
    whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    known = whole and value.numel() > 0 and value.device.type != "meta"
    low, high = (int(value.min()), int(value.max())) if known else (None, None)
    return ExampleInput(tuple(value.shape), dtype_name(value.dtype), path, low, high)


TensorPlane = tuple[str, IntArray]


def _tensor_planes(engine: Engine, roots: IntArray) -> list[TensorPlane]:
    return [
        (name, roots[plane.numpy()])
        for name, value in engine.parameters.items()
        for plane in (*value.planes, *value.rows)
    ]


def _writers(engine: Engine, roots: IntArray) -> tuple[IntArray, list[Call]]:
    """For each root, the index of the first call that writes it (-1: none)."""
    first = np.full(len(roots), -1, np.int64)
    for index in range(len(engine.calls) - 1, -1, -1):
        call = engine.calls[index]
        if call.outputs is not None and not call.depthwise:
            first[roots[call.outputs.numpy()]] = index
            for row in engine.parameters[call.weight].rows:
                if varying_dims(row) == (1 - call.axis,):
                    first[roots[row.reshape(-1).numpy()]] = index
    # Rows are units only where they are attended with; other reshapes just come and go.
    rows, batched = (_roots_of(found, roots) for found in (engine.row_labels, engine.batched_rows))
    first[np.setdiff1d(rows, batched)] = -1
    if engine.nobody >= 0:
        first[roots[engine.nobody]] = -1
    return first, engine.calls


def _roots_of(found: Sequence[Tensor], roots: IntArray) -> IntArray:
    return np.unique(np.concatenate([np.zeros(0, np.int64), *(roots[f.reshape(-1).numpy()] for f in found)]))


def _constraints(
    engine: Engine, roots: IntArray, model: nn.Module, unsited: dict[int, str], uneven: list[IntArray]
) -> tuple[dict[int, str], set[int], dict[int, tuple[int, int]]]:
    """Per root: why it is locked; whether removal is inexact; its (grid family, row)."""
    reasons: dict[int, str] = {}
    for lock in engine.locks:
        for root in np.unique(roots[lock.labels.numpy()]).tolist():
            reasons.setdefault(root, f"{lock.reason} ({lock.source})" if lock.source else lock.reason)
    for root, why in unsited.items():
        reasons.setdefault(root, why)
    inexact = {r for lock in engine.inexact for r in np.unique(roots[lock.labels.numpy()]).tolist()}
    for call in engine.calls:
        if call.inputs is not None and not call.depthwise and not gated_at_input(call, model) and _hidden(call, model):
            for root in np.unique(roots[call.inputs.numpy()]).tolist():
                reasons.setdefault(root, f"read by a functional call, not by a layer ({source_line(call.node)})")
    for root in unshared_rows(engine, roots):
        reasons.setdefault(root, "its positions are those of a layer that knows nothing of whole rows")
    rows = equal_rows(engine, roots, reasons, uneven)
    return reasons, inexact, rows


def _hidden(call: Call, model: nn.Module) -> bool:
    """True if the product is one that Python code does not make: inside one of torch's own layers."""
    layer = type(model.get_submodule(call.module))
    return call.product is None or layer.__module__.startswith("torch.nn.modules.")


def _families(
    tensors: Sequence[TensorPlane],
    writer: IntArray,
    reasons: dict[int, str],
    inexact: set[int],
    rows: dict[int, tuple[int, int]],
    size: int,
) -> list[IntArray]:
    """Roots with the same signature (places and multiplicities, constraints), each in order of first appearance."""
    signature, position = _signatures(tensors, size)
    written = np.flatnonzero(writer >= 0)
    keys: dict[tuple[object, ...], list[int]] = {}
    for root in written.tolist():
        grid = rows[root][0] if root in rows else -1
        key = (int(signature[root]), reasons.get(root), root in inexact, grid)
        keys.setdefault(key, []).append(root)
    families = [np.asarray(sorted(f, key=lambda r: position[r]), np.int64) for f in keys.values()]
    return sorted(families, key=lambda f: (int(writer[f].min()), int(f[0])))


def _signatures(tensors: Sequence[TensorPlane], size: int) -> tuple[npt.NDArray[np.uint64], IntArray]:
    """Per root: a number for its places and multiplicities in tensors, and its first position in one (-1: in none)."""
    generator = np.random.default_rng(0)
    signature = np.zeros(size, np.uint64)
    position = np.full(size, -1, np.int64)
    for _, plane in tensors:
        flat = plane.reshape(-1)
        found, first, counts = np.unique(flat, return_index=True, return_counts=True)
        salt = generator.integers(1, 2**63, dtype=np.uint64)
        signature[found] += salt * (counts.astype(np.uint64) * np.uint64(2654435761) + np.uint64(1))
        unseen = position[found] < 0
        position[found[unseen]] = first[unseen]
    return signature, position


def _make_groups(
    families: Sequence[IntArray],
    tensors: Sequence[TensorPlane],
    writer: IntArray,
    calls: Sequence[Call],
    reasons: dict[int, str],
    inexact: set[int],
    rows: dict[int, tuple[int, int]],
    inputs: Sequence[Reading],
    whole: frozenset[int],
    judged: Mapping[str, Set[tuple[str, int]]],
) -> tuple[tuple[ChannelGroup, ...], dict[int, tuple[int, int]]]:
    """Name the families and collect their slots, writers and readers."""
    size = len(writer)
    family_of, index_of = np.full(size, -1, np.int64), np.full(size, -1, np.int64)
    for number, family in enumerate(families):
        family_of[family], index_of[family] = number, np.arange(len(family))
    slots: list[list[Slot]] = [[] for _ in families]
    for name, plane in tensors:
        owners = family_of[plane]
        for number in np.unique(owners[owners >= 0]).tolist():
            slots[number].append(Slot(name, np.where(owners == number, index_of[plane], -1)))
    readers: list[list[Reader]] = [[] for _ in families]
    seen: set[tuple[object, ...]] = set()
    for reading in inputs:
        owners = np.where(reading.roots >= 0, family_of[reading.roots], -1)
        for number in np.unique(owners[owners >= 0]).tolist():
            key = (number, reading.product or reading.module, reading.output, reading.length)
            if key not in seen:
                seen.add(key)
                units = np.where(owners == number, index_of[reading.roots], -1)
                stored, product = reading.product or ("", -1)
                place = (reading.module, reading.dim, units, reading.weight, reading.axis)
                readers[number].append(Reader(*place, reading.output, reading.length, product, stored))
    axes: dict[str, set[int]] = {}
    for call in (c for c in calls if c.outputs is not None and not c.depthwise):
        axes.setdefault(call.weight, set()).add(1 - call.axis)
    groups: list[ChannelGroup] = []
    taken: dict[str, int] = {}
    for number, family in enumerate(families):
        call = calls[int(writer[family].min())]
        by = judged.get(call.weight, ())
        base = next((s.tensor for s in slots[number] if (s.tensor, s.dim) in by), call.weight)
        base = base.removesuffix(".weight").removesuffix(".index")
        heads_of = base if int(family[0]) in whole else None
        base += ".heads" if heads_of is not None else ""
        taken[base] = taken.get(base, 0) + 1
        first = int(family[0])
        written = tuple(s for s in slots[number] if _writes(s, axes))
        locked = reasons.get(first)
        if locked is None and first in rows and len(family) == 1 + max(rows[r][1] for r in family.tolist()):
            locked = "every unit is a whole row of a reshape, and rows can't go yet"
        if locked is None and len(family) < 2:
            locked = "a single unit"
        if locked is None and not readers[number]:
            locked = "no layer reads the units"
        groups.append(
            ChannelGroup(
                name=base if taken[base] == 1 else f"{base}#{taken[base]}",
                units=len(family),
                slots=tuple(slots[number]),
                writers=written,
                readers=tuple(readers[number]),
                rows=np.asarray([rows[r][1] for r in family.tolist()]) if first in rows else None,
                exact=first not in inexact,
                locked=locked,
                source=source_line(call.node),
                heads_of=heads_of,
                order=number,
            )
        )
    return _inside_rows(groups), {int(r): (n, i) for n, f in enumerate(families) for i, r in enumerate(f.tolist())}


def _inside_rows(groups: Sequence[ChannelGroup]) -> tuple[ChannelGroup, ...]:
    """Groups whose units share out the positions of whole rows (heads), marked with the name of those."""
    over: dict[tuple[str, int], list[tuple[str, IntArray]]] = {}
    for group in groups:
        if group.heads_of is not None:
            for slot in group.slots:
                over.setdefault((slot.tensor, slot.dim), []).append((group.name, slot.units_along_dim))
    marked = []
    for group in groups:
        names = [
            name
            for slot in group.slots
            for name, line in over.get((slot.tensor, slot.dim), [])
            if bool(((line >= 0) & (slot.units_along_dim >= 0)).any())
        ]
        marked.append(replace(group, within=names[0]) if names and group.heads_of is None else group)
    return tuple(marked)


def _writes(slot: Slot, axes: Mapping[str, set[int]]) -> bool:
    """True if the slot lies along a dimension that its weight produces.

    In the weight of a grouped transposed convolution that is no one dimension: each input has outputs of its own.
    """
    produced = axes.get(slot.tensor, set())
    return slot.dim in produced or (1 in produced and slot.dim < 0)
