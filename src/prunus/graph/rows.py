"""Rows: equal counts that reshapes and grouped layers demand, and whole rows (heads) whose positions go with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from prunus.graph.engine import Engine
from prunus.graph.groups import IntArray


def unshared_rows(engine: Engine, roots: IntArray) -> list[int]:
    """Roots of whole rows whose positions also lie in a parameter that the rows do not reach.

    A position goes with its row. Where labels were united after the rows had been handed on (one layer that reads heads
    and its own output), a parameter would keep positions that its other side has lost.
    """
    pairs = _positions_and_rows(engine, roots)
    missing = _read_without_rows(engine, roots, pairs)
    if not len(pairs):
        return sorted(missing)
    for value in engine.parameters.values():
        for plane in value.planes:
            line = roots[plane.numpy()].reshape(-1)
            if plane.numel() != max(plane.shape, default=0):
                continue
            low, high = (np.searchsorted(pairs[:, 0], line, side) for side in ("left", "right"))
            if (low == high).all():
                continue
            over = [roots[r.numpy()].reshape(-1) for r in value.rows if r.shape == plane.shape]
            for level in range(int((high - low).max())):
                inside = np.flatnonzero(high - low > level)
                wanted = pairs[low[inside] + level, 1]
                reached = np.zeros(len(inside), bool)
                for row in over:
                    reached |= row[inside] == wanted
                missing.update(wanted[~reached].tolist())
    return sorted(missing)


def _read_without_rows(engine: Engine, roots: IntArray, pairs: IntArray) -> set[int]:
    """Roots of rows over a weight that some call applies to positions of which nobody knows the row."""
    known = {(int(position), int(row)) for position, row in pairs}
    missing: set[int] = set()
    for call in engine.calls:
        if call.inputs is None or call.depthwise or call.in_rows:
            continue
        line = roots[call.inputs.numpy()]
        for plane in engine.parameters[call.weight].rows:
            if plane.numel() == len(line) and plane.shape[call.axis] == len(line):
                over = roots[plane.numpy()].reshape(-1)
                met = zip(line.tolist(), over.tolist(), strict=True)
                missing.update(row for position, row in met if position != row and (position, row) not in known)
    return missing - ({int(roots[engine.rows.nobody])} if engine.rows.nobody >= 0 else set())


def _positions_and_rows(engine: Engine, roots: IntArray) -> IntArray:
    """Pairs (root of a position, root of its row), sorted; positions tied over several rows belong to none.

    A row whose positions are all one unit is that unit.
    """
    nobody = roots[engine.rows.nobody] if engine.rows.nobody >= 0 else -1
    found = [np.zeros((0, 2), np.int64)]
    for positions, rows in engine.rows.adopted:
        pairs = np.unique(np.stack([roots[positions], roots[rows]], 1), axis=0)
        pairs = pairs[(pairs[:, 1] != nobody) & (pairs[:, 0] != pairs[:, 1])]
        _, where, counts = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
        found.append(pairs[counts[where] == 1])
    return np.unique(np.concatenate(found), axis=0)


GROUPS = " groups of "
"""In the words for a grid: it is that of a grouped layer, each group of which has as many units as any other."""


def equal_rows(
    engine: Engine, roots: IntArray, reasons: dict[int, str], uneven: list[IntArray]
) -> dict[int, tuple[int, int]]:
    """Merge all grids into one row per root. Grids must be nested and touch each unit in one row.

    Those of grouped layers that are not, or that hold some units that must stay, are added to `uneven`; others lock.
    """
    rows: dict[int, tuple[int, int]] = {}
    found = ((_rows_and_columns(roots[labels.numpy()], why), why) for labels, why in engine.grids)
    grids = sorted(((grid, why) for grid, why in found if grid is not None), key=lambda g: -len(g[0]))
    changed = True
    while changed:
        changed = False
        rows = {}
        for identity, (grid, why) in enumerate(grids):
            members = {int(r) for r in np.unique(grid)}
            if len({tuple(line) for line in np.sort(grid, 1).tolist()}) > 1:
                grid = grid[np.sort(np.unique(np.sort(grid, 1), axis=0, return_index=True)[1])]
            place: dict[int, set[int]] = {}
            for row, line in enumerate(grid):
                for root in line.tolist():
                    place.setdefault(root, set()).add(row)
            if all(len(p) == len(grid) for p in place.values()) and (np.sort(grid, 1) == np.sort(grid[0])).all():
                continue  # every unit has the same part of every row: columns are tied, any count keeps the rows equal
            lock = next((reasons[r] for r in members if r in reasons), None)
            if any(len(p) > 1 for p in place.values()):
                lock = lock or f"appears in several of {why}"
            known = {r: rows[r] for r in members if r in rows}
            if known and lock is None and not _nested(known, place, members):
                lock = f"two different divisions into rows meet ({why})"
            if lock is not None and GROUPS in why and members - reasons.keys():
                uneven.append(grid)
            elif lock is not None:
                fresh = members - reasons.keys()
                for root in fresh:
                    reasons[root] = f"shares equal counts ({why}) with units that must stay: {lock}"
                changed |= bool(fresh)
            elif not known:
                rows.update({root: (identity, next(iter(p))) for root, p in place.items()})
    return {root: row for root, row in rows.items() if root not in reasons}


def tie_unlike_slices(engine: Engine, kinds: npt.NDArray[np.uint64], roots: IntArray) -> None:
    """Unite dimensions of queries and keys with those of values where one reshape demands as many of each.

    A fused layer cut into [3, heads, width] keeps the same number of all three; they are units of different kinds, so
    equal counts could not be promised.

    Args:
        engine: the label run.
        kinds: what tells units apart, per root.
        roots: root of every label.
    """
    summed = np.unique(
        np.concatenate([np.zeros(0, np.int64), *(roots[s.labels.numpy()].ravel() for s in engine.summed)])
    )
    for labels, _ in engine.grids:
        plane = roots[labels.numpy()]
        dims = [d for d, size in enumerate(plane.shape) if size > 1]
        if len(dims) < 2 or not np.isin(plane, summed).any():
            continue
        for dim in dims[:-1]:
            slices = np.sort(np.moveaxis(kinds[plane], dim, 0).reshape(plane.shape[dim], -1), 1)
            if (slices != slices[0]).any():
                engine.labels.tie(labels, [dim])


def _rows_and_columns(plane: IntArray, why: str) -> IntArray | None:
    """A plane as [rows, columns]; None if a unit turned out to be a whole block of it (a channel of [8, 4, 4]).

    Whole groups of a layer can't go: its code holds their number.
    """
    for dim in range(plane.ndim if GROUPS not in why else 0):
        first = plane.take([0], axis=dim)
        if (plane == first).all():
            plane = first
    sizes = [size for size in plane.shape if size > 1]
    if len(sizes) < 2 and GROUPS not in why:
        return None
    return plane.reshape(-1, plane.shape[-1] if GROUPS in why else sizes[-1])


def tie_groups(engine: Engine, uneven: Sequence[IntArray]) -> None:
    """Let the units at one place of all groups go together: then any choice leaves as many in each.

    Args:
        engine: the label run.
        uneven: roots of the units, [groups, places].
    """
    for grid in uneven:
        engine.labels.unite(torch.from_numpy(grid), torch.from_numpy(grid[:1]))


def filled_rows(
    families: Sequence[IntArray],
    rows: dict[int, tuple[int, int]],
    engine: Engine,
    roots: IntArray,
    reasons: dict[int, str],
    uneven: list[IntArray],
) -> dict[int, tuple[int, int]]:
    """Rows only where a family fills each of them equally; equal counts between families cannot be promised.

    Uneven families of equal chunks lose the constraint (the rewritten graph splits unevenly); grids of grouped layers
    are added to `uneven`; others lock.
    """
    layers = [roots[labels.numpy()] for labels, why in engine.grids if GROUPS in why]
    size: dict[int, int] = {}
    for identity, row in rows.values():
        size[identity] = max(size.get(identity, 0), row + 1)
    chunked = {int(r) for labels, why in engine.grids if why.endswith("equal chunks")
               for r in np.unique(roots[labels.numpy()])}  # fmt: skip
    grouped = {int(r) for labels, why in engine.grids if not why.endswith("equal chunks")
               for r in np.unique(roots[labels.numpy()])}  # fmt: skip
    settled = dict(rows)
    for family in families:
        places = [rows[r] for r in family.tolist() if r in rows]
        if not places or len(set(np.bincount([p[1] for p in places], minlength=size[places[0][0]]).tolist())) == 1:
            continue
        over = [_rows_and_columns(grid, GROUPS) for grid in layers if np.isin(family, grid).any()]
        uneven += [grid for grid in over if grid is not None and (grid != grid[:1]).any()]  # what is tied stays locked
        for root in family.tolist():
            del settled[root]
            if root in grouped or root not in chunked:
                reasons.setdefault(root, "needs equal counts per row with units of other layers")
    return settled


def _nested(known: dict[int, tuple[int, int]], place: dict[int, set[int]], members: set[int]) -> bool:
    """True if the finer rows already recorded divide each new row equally and belong to one grid."""
    if len(known) != len(members) or len({grid for grid, _ in known.values()}) != 1:
        return False
    fine_in: dict[int, set[int]] = {}
    for root, (_, fine) in known.items():
        fine_in.setdefault(next(iter(place[root])), set()).add(fine)
    sets = list(fine_in.values())
    disjoint = sum(len(s) for s in sets) == len(set().union(*sets))
    return disjoint and len({len(s) for s in sets}) == 1
