"""What a plan does to tensors, and what is masked for its proof: from the units that stay of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prunus.errors import PlanError
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup, Slot
from prunus.plan.kept import selecting_buffers


@dataclass(frozen=True)
class TensorEdit:
    """How one parameter or buffer is cut: kept positions per dimension.

    Attributes:
        shape: shape before.
        keep: dimension -> kept positions, ascending.
        columns: for the weight of a grouped convolution, the kept input positions of each group.
        values: for a buffer that selects units by index, what it holds then: positions among those that stay.
    """

    shape: tuple[int, ...]
    keep: Mapping[int, tuple[int, ...]]
    columns: tuple[tuple[int, ...], ...] | None = None
    values: tuple[int, ...] | None = None

    def only(self, dim: int) -> bool:
        """True if nothing is cut along another dimension than `dim`."""
        return self.columns is None and self.values is None and set(self.keep) <= {dim}


@dataclass(frozen=True)
class MaskedInput:
    """A reader's input positions that the plan removes: masking them must equal removal (the proof).

    With `output` they are positions of the module's output, among those `of` one side of a product of activations
    that sums over them (queries or keys; none if a norm takes their length); `axis` is the dimension of the module's
    weight that writes them. With
    `product` they are those of an activation in a product that is no module's: the how many-th, in a forward pass, with
    something made of the tensor `stored`. With `routing` they are experts: what that product makes, or without one the
    numbers that `stored` adds to it, are minus infinity.
    """

    module: str
    dim: int
    size: int
    removed: tuple[int, ...]
    output: bool = False
    of: tuple[int, ...] = ()
    axis: int = 0
    product: int = -1
    stored: str = ""
    routing: bool = False


def checked_blocks(graph: Graph, names: Sequence[str]) -> Sequence[str]:
    """The blocks, if they may go.

    Raises:
        PlanError: one of them is locked, or goes with another of them.
    """
    for name in names:
        block = graph.blocks.find(name)
        if block is not None and block.locked is not None:
            raise PlanError(f"block {name!r}", f"it is locked: {block.locked}", "leave it out of the plan")
        if name in graph.blocks.inner([n for n in names if n != name]):
            raise PlanError(f"block {name!r}", "it goes with another one of the plan", "leave it out of the plan")
    return names


def edits_of(graph: Graph, kept: Mapping[str, Any]) -> dict[str, TensorEdit]:
    """Edit of every parameter and buffer that loses something but not all: whole experts go as modules.

    Args:
        graph: the analysed model.
        kept: units that stay of each group that loses some.
    """
    removed_from: dict[str, list[tuple[Slot, Any]]] = {}
    for name, units in kept.items():
        group = graph.group(name)
        gone = ~np.isin(np.arange(group.units), units)
        for slot in group.slots:
            hit = np.where(slot.plane >= 0, gone[slot.plane], False)
            removed_from.setdefault(slot.tensor, []).append((slot, hit))
    edits = {tensor: _edit(graph.shapes[tensor], hits) for tensor, hits in removed_from.items()}
    edits = {tensor: edit for tensor, edit in edits.items() if edit.columns or (edit.keep and all(edit.keep.values()))}
    for tensor, values in selecting_buffers(graph, kept).items():
        edits[tensor] = replace(edits.get(tensor, TensorEdit(graph.shapes[tensor], {})), values=values)
    return edits


def gone_whole(graph: Graph, kept: Mapping[str, Any]) -> tuple[str, ...]:
    """Tensors of experts that go as modules of their own; arguments as for `edits_of`."""
    found = []
    for name, units in kept.items():
        group = graph.group(name)
        stays = set(map(int, units))
        if group.routing is not None:
            found += [s.tensor for s in group.slots if not stays & set(s.plane.reshape(-1).tolist())]
    return tuple(found)


def _edit(shape: tuple[int, ...], hits: Sequence[tuple[Slot, Any]]) -> TensorEdit:
    gone = {d: np.zeros(size, bool) for d, size in enumerate(shape)}
    elements = None
    for slot, hit in hits:
        if slot.dim >= 0:
            gone[slot.dim] |= hit.reshape(-1)
        else:
            flat = hit.reshape(shape[0], shape[1])
            elements = flat if elements is None else elements | flat
    keep = {d: tuple(np.flatnonzero(~g).tolist()) for d, g in gone.items() if g.any()}
    columns = None
    if elements is not None:
        columns = tuple(tuple(np.flatnonzero(~elements[o]).tolist()) for o in keep.get(0, range(shape[0])))
    return TensorEdit(shape, keep, columns)


def masked_inputs(graph: Graph, kept: Mapping[str, Any]) -> tuple[MaskedInput, ...]:
    """What is masked where the groups are read; arguments as for `edits_of`."""
    removed: dict[tuple[str, int, int, bool, int, bool, int, str, bool], Any] = {}
    within: dict[tuple[str, int, int, bool, int, bool, int, str, bool], Any] = {}
    for name, units in kept.items():
        group: ChannelGroup = graph.group(name)
        gone = ~np.isin(np.arange(group.units), units)
        for reader in group.readers:
            axis = reader.axis if reader.output else 0
            product = (reader.product, reader.stored, reader.routing)
            key = (reader.module, reader.input_dim, len(reader.units), reader.output, axis, reader.length, *product)
            hit = np.where(reader.units >= 0, gone[reader.units], False)
            removed[key] = removed.get(key, False) | hit
            within[key] = within.get(key, False) | (reader.units >= 0)
    return tuple(
        MaskedInput(
            *key[:3], _places(hit), key[3], _places(within[key]) if key[3] and not key[5] else (), key[4], *key[6:]
        )
        for key, hit in removed.items()
    )


def _places(hit: Any) -> tuple[int, ...]:
    return tuple(np.flatnonzero(hit).tolist())
