"""Families: roots that lie in the same places of the same tensors under the same constraints. Each becomes a group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from prunus.graph.engine import Engine, source_line
from prunus.graph.groups import ChannelGroup, IntArray, Reader, Slot
from prunus.graph.labels import varying_dims
from prunus.graph.notes import Call
from prunus.graph.readings import Reading
from prunus.graph.writers import Judged

TensorPlane = tuple[str, IntArray]


@dataclass(frozen=True)
class Constraints:
    """What is known of roots.

    Attributes:
        reasons: why a root stays.
        inexact: roots whose removal is not masking.
        rows: (number of the grid, row in it) of roots of which as many stay in every row.
    """

    reasons: dict[int, str]
    inexact: set[int]
    rows: dict[int, tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Family:
    """Units on their way to a group: unit i is the root `roots[i]`.

    Attributes:
        roots: in the order of their first appearance in a tensor.
        call: the first call that writes one of them.
        slots: where they live in stored tensors.
        readers: what reads them.
    """

    roots: IntArray
    call: Call
    slots: list[Slot] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)


def tensor_planes(engine: Engine, roots: IntArray) -> list[TensorPlane]:
    """Name of each stored or computed tensor, and the roots on each of its planes, rows too."""
    return [
        (name, roots[plane.numpy()])
        for name, value in engine.parameters.items()
        for plane in (*value.planes, *value.rows)
    ]


def first_writers(engine: Engine, roots: IntArray) -> IntArray:
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
    rows, batched = (roots_of(found, roots) for found in (engine.rows.made, engine.rows.batched))
    first[np.setdiff1d(rows, batched)] = -1
    if engine.rows.nobody >= 0:
        first[roots[engine.rows.nobody]] = -1
    return first


def roots_of(found: Sequence[Tensor], roots: IntArray) -> IntArray:
    """The roots of labels in several tensors, each once, ascending."""
    return np.unique(np.concatenate([np.zeros(0, np.int64), *(roots[f.reshape(-1).numpy()] for f in found)]))


def alike(tensors: Sequence[TensorPlane], writer: IntArray, constraints: Constraints) -> list[IntArray]:
    """Roots with the same signature (places and multiplicities, constraints), each in order of first appearance."""
    signature, position = signatures(tensors, len(writer))
    written = np.flatnonzero(writer >= 0)
    rows = constraints.rows
    keys: dict[tuple[object, ...], list[int]] = {}
    for root in written.tolist():
        grid = rows[root][0] if root in rows else -1
        key = (int(signature[root]), constraints.reasons.get(root), root in constraints.inexact, grid)
        keys.setdefault(key, []).append(root)
    families = [np.asarray(sorted(f, key=lambda r: position[r]), np.int64) for f in keys.values()]
    return sorted(families, key=lambda f: (int(writer[f].min()), int(f[0])))


def families_of(
    members: Sequence[IntArray],
    writer: IntArray,
    calls: Sequence[Call],
    tensors: Sequence[TensorPlane],
    readings: Iterable[Reading],
) -> list[Family]:
    """The families with their slots and readers.

    Args:
        members: roots of each, see `alike`.
        writer: for each root the number of the first call that writes it, or -1.
        calls: all of them.
        tensors: roots on the planes of stored tensors.
        readings: what reads which roots.
    """
    families = [Family(roots, calls[int(writer[roots].min())]) for roots in members]
    family_of, index_of = np.full(len(writer), -1, np.int64), np.full(len(writer), -1, np.int64)
    for number, roots in enumerate(members):
        family_of[roots], index_of[roots] = number, np.arange(len(roots))
    for name, plane in tensors:
        owners = family_of[plane]
        for number in np.unique(owners[owners >= 0]).tolist():
            families[number].slots.append(Slot(name, np.where(owners == number, index_of[plane], -1)))
    seen: set[tuple[object, ...]] = set()
    for reading in readings:
        owners = np.where(reading.roots >= 0, family_of[reading.roots], -1)
        for number in np.unique(owners[owners >= 0]).tolist():
            key = (number, reading.product or reading.module, reading.output, reading.length)
            if key not in seen:
                seen.add(key)
                units = np.where(owners == number, index_of[reading.roots], -1)
                stored, product = reading.product or ("", -1)
                place = (reading.module, reading.dim, units, reading.weight, reading.axis)
                families[number].readers.append(Reader(*place, reading.output, reading.length, product, stored))
    return families


def as_groups(
    families: Sequence[Family], constraints: Constraints, calls: Sequence[Call], whole: Set[int], judged: Judged
) -> tuple[ChannelGroup, ...]:
    """The families as groups, named by what writes them.

    Args:
        families: in data-flow order.
        constraints: of their roots.
        calls: all calls of layers.
        whole: roots of whole rows that are attended with.
        judged: by what computed weights are judged.
    """
    axes: dict[str, set[int]] = {}
    for call in (c for c in calls if c.outputs is not None and not c.depthwise):
        axes.setdefault(call.weight, set()).add(1 - call.axis)
    groups: list[ChannelGroup] = []
    taken: dict[str, int] = {}
    for number, family in enumerate(families):
        first, base = int(family.roots[0]), _layer(family, judged)
        heads_of = base if first in whole else None
        base += ".heads" if heads_of is not None else ""
        taken[base] = taken.get(base, 0) + 1
        groups.append(
            ChannelGroup(
                name=base if taken[base] == 1 else f"{base}#{taken[base]}",
                units=len(family.roots),
                slots=tuple(family.slots),
                writers=tuple(s for s in family.slots if _writes(s, axes)),
                readers=tuple(family.readers),
                rows=_rows(family, constraints),
                exact=first not in constraints.inexact,
                locked=_locked(family, constraints),
                source=source_line(family.call.node),
                heads_of=heads_of,
                order=number,
            )
        )
    return _inside_rows(groups)


def _layer(family: Family, judged: Judged) -> str:
    """Name of the layer that writes the units first: of what it is judged by, if its weight is computed."""
    weight = family.call.weight
    by = judged.get(weight, ())
    name = next((s.tensor for s in family.slots if (s.tensor, s.dim) in by), weight)
    return name.removesuffix(".weight").removesuffix(".index")


def _rows(family: Family, constraints: Constraints) -> IntArray | None:
    """The row of each unit, if as many must stay in every row."""
    if int(family.roots[0]) not in constraints.rows:
        return None
    return np.asarray([constraints.rows[r][1] for r in family.roots.tolist()])


def _locked(family: Family, constraints: Constraints) -> str | None:
    """Why the units stay, or None."""
    known, rows = constraints.reasons.get(int(family.roots[0])), _rows(family, constraints)
    if known is not None:
        return known
    if rows is not None and len(rows) == 1 + int(rows.max()):
        return "every unit is a whole row of a reshape, and rows can't go yet"
    if len(family.roots) < 2:
        return "a single unit"
    return None if family.readers else "no layer reads the units"


def signatures(tensors: Sequence[TensorPlane], size: int) -> tuple[npt.NDArray[np.uint64], IntArray]:
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
