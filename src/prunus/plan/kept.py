"""Which labels, positions and elements of a captured graph's values stay if some units of its groups do."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from prunus.errors import PlanError
from prunus.graph.grouping import Graph
from prunus.graph.groups import IntArray, Selection
from prunus.graph.labels import Value
from prunus.graph.resizing import BoolArray


class Kept:
    """Which labels stay, given the units that stay of each group that loses some.

    A position in a row that goes goes with it. But where a value still has its rows apart, the label of a row's first
    position stands for its column in all rows, and stays as long as the column does.
    """

    def __init__(self, graph: Graph, units: Mapping[str, Iterable[int]]) -> None:
        kept = np.ones(len(graph.roots), bool)
        names = [g.name for g in graph.channel_groups]
        stays = {name: set(map(int, stays)) for name, stays in units.items()}
        for root, (number, unit) in graph.labels.items():
            if names[number] in stays and unit not in stays[names[number]]:
                kept[root] = False
        self.graph, self.columns = graph, kept[graph.roots]
        self.positions = self._adopted(np.zeros(0, np.int64))

    def of(self, value: Value) -> BoolArray:
        """Label -> whether it stays, as the value's planes mean their labels: bool [labels]."""
        if not value.rows:
            return self.positions
        return self._adopted(np.unique(np.concatenate([r.numpy().ravel() for r in value.rows])))

    def line(self, value: Value, dim: int) -> BoolArray | None:
        """Which positions along `dim` stay, or None if nothing varies there."""
        dim %= max(value.ndim, 1)
        mask = self._alive(value, dim)
        return None if mask is None else np.asarray(mask.any(axis=tuple(d for d in range(mask.ndim) if d != dim)))

    def count(self, value: Value, dim: int) -> int | None:
        """Size along `dim` after removal; for dimensions that share planes the kept elements fill a grid."""
        dim %= max(value.ndim, 1)
        mask = self._alive(value, dim)
        if mask is None:
            return None
        mask = np.asarray(mask.any(axis=tuple(range(dim + 1, mask.ndim))))
        return int(mask.sum()) // max(int(mask.any(axis=dim).sum()), 1)

    def _alive(self, value: Value, dim: int) -> Any:
        """Which elements stay, laid over all dimensions of what bears on `dim`; None if nothing does."""
        bearing = [p for p in (*value.planes, *value.rows) if p.shape[dim] > 1]
        result: Any = None
        stays = self.of(value)
        for plane in bearing:
            mask = stays[plane.numpy()]
            result = mask if result is None else result & mask
        return result

    def _adopted(self, apart: Any) -> BoolArray:
        kept, roots = self.columns.copy(), self.graph.roots
        for positions, rows in self.graph.adopted:
            inside = ~np.isin(roots[rows], roots[apart])
            kept[positions[inside]] &= self.columns[rows[inside]]
        return kept


def presence(value: Value, kept: Kept) -> BoolArray | None:
    """Which elements stay, broadcastable to the value's shape; None if all do."""
    result: Any = None
    stays = kept.of(value)
    for plane in (*value.planes, *value.rows):
        mask = stays[plane.numpy()]
        result = mask if result is None else result & mask
    return None if result is None or bool(result.all()) else result


def renumbered(selection: Selection, stays: BoolArray) -> IntArray | None:
    """What an index that selects units becomes, int64 [entries that stay]; None if it stays as it is.

    Args:
        selection: units and the index.
        stays: label -> whether it stays.
    """
    alive = stays[selection.units]
    if bool(alive.all()):
        return None
    place = np.cumsum(alive) - 1
    return np.asarray(place[selection.index[alive[selection.index]]], np.int64)


def selecting_buffers(graph: Graph, units: Mapping[str, Iterable[int]]) -> dict[str, tuple[int, ...]]:
    """What the buffers hold that select units of which some go, by name.

    Args:
        graph: the analysed model.
        units: the units that stay of each group that loses some.
    """
    held = [s for s in graph.selections.values() if s.tensor]
    if not held:
        return {}
    stays = Kept(graph, units).positions
    found = {s.tensor: renumbered(s, stays) for s in held}
    return {tensor: tuple(values.tolist()) for tensor, values in found.items() if values is not None}


def checked_units(graph: Graph, name: str, indices: Sequence[int] | Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The indices of a group's units that stay, ascending. Raises PlanError if they are none of its units."""
    try:
        group = graph.group(name)
    except KeyError:
        known = ", ".join(g.name for g in graph.channel_groups)
        raise PlanError(f"group {name!r}", "there is no such group", f"choose one of: {known}") from None
    listed = indices.tolist() if isinstance(indices, Tensor | np.ndarray) else list(indices)
    if any(isinstance(i, bool | np.bool_) or not isinstance(i, numbers.Integral) for i in listed):
        fix = "give the whole numbers of the units that stay; of a mask, mask.nonzero().flatten()"
        raise PlanError(f"group {name!r}", f"kept indices must be whole numbers, got {listed[:4]}", fix)
    values = np.asarray(listed, np.int64)
    if group.locked is not None and len(values) < group.units:
        raise PlanError(f"group {name!r}", f"it is locked: {group.locked}", "leave it out of the plan")
    unique = np.unique(values)
    if len(unique) != len(values) or len(unique) == 0 or unique[0] < 0 or unique[-1] >= group.units:
        raise PlanError(
            f"group {name!r}",
            f"kept indices must be distinct and within 0..{group.units - 1}, at least one; got {len(values)} indices",
            "give each kept unit once",
        )
    if group.rows is not None:
        counts = np.bincount(group.rows[unique], minlength=group.multiple)
        if len(set(counts.tolist())) > 1:
            raise PlanError(
                f"group {name!r}",
                f"the same number must stay in each of its {group.multiple} rows, got {counts.tolist()}",
                "choose equal counts per row (group.rows tells each unit's row)",
            )
    return unique


def check_routes(graph: Graph, counts: Mapping[str, int]) -> None:
    """Raise PlanError if fewer experts stay somewhere than a router's code needs."""
    for name, stays in counts.items():
        routing = graph.group(name).routing
        if routing is not None and stays < routing.least:
            what = f"its router's code needs {routing.least} experts, and {stays} stay"
            raise PlanError(f"group {name!r}", what, f"keep {routing.least} or more")
