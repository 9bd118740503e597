"""The cost of what is left of a network, as a function of the kept counts: exact, and fast enough to bisect on.

Convention: one MAC per weight element and output position of every convolution (positions of the input for a
transposed one) and linear layer, of experts' weights per element and token that is given the expert; biases,
normalisations and activations are not counted. `params` counts every parameter, `weights` only the elements of the
weights that are contracted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from prunus.files.decoding import Malformed, decode
from prunus.graph.grouping import Graph
from prunus.graph.groups import Contraction
from prunus.plan.resources import RESOURCES, FloatArray, Layout, Remains, resource
from prunus.runtime.entry import entry

ALWAYS = ("macs", "params", "weights")
"""Resources that every cost has."""


@resource("params", help="number of parameters", label="parameters")
def params(left: Remains) -> int:
    """Elements of all parameters."""
    return round(float(left.elements[left.layout.trainable].sum()))


@resource("macs", help="multiply-accumulates per example", label="MACs per example")
def macs(left: Remains) -> int:
    """Weight elements times the positions that they are applied to."""
    return round(float((left.elements[left.layout.contracted] * left.positions).sum()))


@resource("weights", help="elements of convolution and linear weights alone")
def weights(left: Remains) -> int:
    """Elements of the weights that are contracted."""
    return round(float(left.elements[left.layout.weights].sum()))


class Cost(Mapping[str, int | float]):
    """Cost of one example's forward pass: name of a resource -> amount, and each of them as an attribute.

    Attributes:
        macs: multiply-accumulates per example.
        params: number of parameters.
        weights: elements of convolution and linear weights alone.
    """

    macs: int
    params: int
    weights: int

    def __init__(self, **amounts: int | float) -> None:
        vars(self).update(amounts)

    @classmethod
    def of(cls, left: Remains) -> Cost:
        """What is left of a network in every registered resource that is known of it, by name."""
        found = {name: RESOURCES[name].count(left) for name in sorted(RESOURCES)}
        return cls(**{name: amount for name, amount in found.items() if amount is not None})

    @classmethod
    def decoded(cls, value: Any, where: str) -> Cost:
        """A cost from plain data of a file; see `files.decoding.decode`. Raises Malformed."""
        if not isinstance(value, dict):
            raise Malformed(f"{where} is no object")
        if missing := [name for name in ALWAYS if name not in value]:
            raise Malformed(f"{where} has no {missing[0]!r}")
        if odd := [name for name in value if not name.isidentifier() or hasattr(Mapping, name)]:
            raise Malformed(f"{where} has the unknown field {odd[0][:60]!r}")
        kinds = {name: int if name in ALWAYS else int | float for name in value}
        found = {name: decode(kinds[name], amount, f"{where}.{name}") for name, amount in value.items()}
        if min(found.values()) < 0:
            raise Malformed("a cost is negative")
        return cls(**found)

    def __getitem__(self, name: str) -> int | float:
        return vars(self)[name]  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a cost is what it is: {name} can't be set")

    def __repr__(self) -> str:
        return f"Cost({', '.join(f'{name}={amount!r}' for name, amount in self.items())})"


class CostModel:
    """Cost as a function of how many units each group keeps."""

    def __init__(self, graph: Graph) -> None:
        self.names = [g.name for g in graph.channel_groups]
        self.units = np.array([g.units for g in graph.channel_groups], np.int64)
        shapes = {**graph.shapes, **graph.computed}
        index = {name: i for i, name in enumerate(shapes)}
        width = max((len(s) for s in shapes.values()), default=1)
        self._base = np.ones((len(shapes), max(width, 1)))
        self._slope = np.zeros((len(shapes), max(width, 1), len(self.names)))
        for name, shape in shapes.items():
            self._base[index[name], : len(shape)] = shape
        self._whole = self._base.copy()
        lines: dict[tuple[int, int], list[tuple[int, npt.NDArray[np.int64]]]] = {}
        for number, group in enumerate(graph.channel_groups):
            covered = {(s.tensor, s.dim) for s in (*group.slots, *group.computed)}
            for slot in (*group.slots, *group.computed):
                dim, line = _counted_line(slot.plane, slot.dim, (slot.tensor, 0) in covered)
                lines.setdefault((index[slot.tensor], dim), []).append((number, line))
        self._lines = lines
        self._double: list[tuple[int, int, int, int, float]] = []
        for (row, dim), members in lines.items():
            self._cover(row, dim, [(number, line >= 0) for number, line in members])
        trainable = np.array([name in graph.trainable for name in shapes], bool)
        contracted = np.array([index[graph.aliases.get(c.weight, c.weight)] for c in graph.contractions], np.int64)
        self._layout = Layout(graph, index, trainable, contracted, np.unique(contracted))
        self._positions = np.array([c.positions for c in graph.contractions], np.float64)
        self._shrinking = [
            (number, *self._live_share(plane, graph.labels))
            for number, contraction in enumerate(graph.contractions)
            for plane in contraction.over
        ]
        self._routed = [(number, *_choices(graph, c)) for number, c in enumerate(graph.contractions) if c.experts]
        self._over = {n: contraction.over for n, contraction in enumerate(graph.contractions) if contraction.over}
        self._labels = graph.labels
        self._rows_of = _rows_of(graph, [plane for planes in self._over.values() for plane in planes])

    def _cover(self, row: int, dim: int, members: Sequence[tuple[int, npt.NDArray[np.bool_]]]) -> None:
        """Positions that one group decides on are linear in its count; those of columns in whole rows bilinear."""
        owners = np.full((2, len(members[0][1])), -1, np.int64)
        for number, line in members:
            free = owners[0, line] < 0
            places = np.flatnonzero(line)
            owners[0, places[free]], owners[1, places[~free]] = number, number
        for first, second in np.unique(owners, axis=1).T.tolist():
            if first < 0:
                continue
            positions = int(((owners[0] == first) & (owners[1] == second)).sum())
            self._base[row, dim] -= positions
            if second < 0:
                self._slope[row, dim, first] += positions / self.units[first]
            else:
                share = positions / (int(self.units[first]) * int(self.units[second]))
                self._double.append((row, dim, first, second, share))

    def _live_share(
        self, plane: npt.NDArray[np.int64], labels: Mapping[int, tuple[int, int]]
    ) -> tuple[float, FloatArray]:
        """Share of a plane's elements that always stays, and what each unit of each group adds to it."""
        slope = np.zeros(len(self.names))
        roots, counts = np.unique(plane, return_counts=True)
        for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
            if root in labels:
                number = labels[root][0]
                slope[number] += count / (len(plane) * self.units[number])
        return 1.0 - float(slope @ self.units), slope

    def at(self, counts: npt.NDArray[np.int64]) -> Cost:
        """Cost when group i keeps `counts[i]` units (order of `names`)."""
        sizes = self._base + self._slope @ counts
        for row, dim, first, second, share in self._double:
            sizes[row, dim] += share * counts[first] * counts[second]
        positions = self._positions.copy()
        for number, base, slope in self._shrinking:
            positions[number] *= base + slope @ counts
        self._share_out_(positions, counts)
        return Cost.of(Remains(self._layout, sizes, positions))

    def _share_out_(self, positions: FloatArray, counts: npt.NDArray[np.int64]) -> None:
        """Tokens come to the experts that stay, as many to each token as before where there are so many."""
        for number, group, choices in self._routed:
            units, stays = int(self.units[group]), int(counts[group])
            positions[number] *= min(choices, stays) / max(stays, 1) * units / min(choices, units)

    def of(self, kept: Mapping[str, Collection[int]]) -> Cost:
        """Cost when these very units stay; groups that are not named keep everything.

        Differs from `at` where a layer lies along some units of a group only (a mixer behind a slice), or along
        positions that go with whole rows: how many stay depends on which do, and `at` takes the average.
        """
        stays = [np.ones(units, bool) for units in self.units]
        for number, name in enumerate(self.names):
            if name in kept:
                stays[number][:] = False
                stays[number][list(kept[name])] = True
        sizes, positions = self._whole.copy(), self._positions.copy()
        for (row, dim), members in self._lines.items():
            alive = np.ones(len(members[0][1]), bool)
            for number, line in members:
                alive[line >= 0] &= stays[number][line[line >= 0]]
            sizes[row, dim] = alive.sum()

        def alive_label(root: int) -> bool:
            owner = self._labels.get(root)
            return owner is None or bool(stays[owner[0]][owner[1]])

        for call, planes in self._over.items():
            apart = {root for plane in planes for root in plane.tolist()}
            for plane in planes:
                stay = (
                    alive_label(root) and all(alive_label(r) for r in self._rows_of.get(root, ()) if r not in apart)
                    for root in plane.tolist()
                )
                positions[call] *= np.mean(list(stay))
        self._share_out_(positions, np.array([mask.sum() for mask in stays]))
        return Cost.of(Remains(self._layout, sizes, positions))

    def counts(self, kept: Mapping[str, int]) -> npt.NDArray[np.int64]:
        """Vector of counts from a mapping; groups that are not named keep everything."""
        return np.array([kept.get(n, u) for n, u in zip(self.names, self.units.tolist(), strict=True)], np.int64)

    def dense(self) -> Cost:
        """Cost with every unit kept."""
        return self.at(self.units)


def _choices(graph: Graph, contraction: Contraction) -> tuple[int, int]:
    """Number of the group of experts of a contraction among all groups, and how many experts a token is given."""
    number = next(i for i, g in enumerate(graph.channel_groups) if g.name == contraction.experts)
    routing = graph.channel_groups[number].routing
    assert routing is not None
    return number, routing.choices


def _rows_of(graph: Graph, planes: Sequence[npt.NDArray[np.int64]]) -> dict[int, set[int]]:
    """Root label of a position on one of the planes -> root labels of the whole rows it lies in and goes with."""
    found: dict[int, set[int]] = {}
    if not planes:
        return found
    wanted = np.unique(np.concatenate([plane.reshape(-1) for plane in planes]))
    for positions, rows in graph.adopted:
        met = np.isin(graph.roots[positions], wanted)
        for position, row in zip(graph.roots[positions[met]].tolist(), graph.roots[rows[met]].tolist(), strict=True):
            found.setdefault(position, set()).add(row)
    return found


def _counted_line(plane: npt.NDArray[np.int64], dim: int, rows_covered: bool) -> tuple[int, npt.NDArray[np.int64]]:
    """The dimension whose size a slot determines, and the units along it (grouped weights: columns of one row)."""
    if dim >= 0:
        return dim, plane.reshape(-1)
    axis = 1 if plane.shape[1] > 1 else 0
    other = tuple(slice(None) if d == axis else 0 for d in range(plane.ndim))
    lines = plane[other]
    if rows_covered or (lines >= 0).any():
        return axis, lines
    first = np.argwhere(plane >= 0)[0]
    return axis, plane[tuple(slice(None) if d == axis else first[d] for d in range(plane.ndim))]


@entry()
def count_cost(graph: Graph) -> Cost:
    """Cost of the model as captured.

    Example:
        >>> prunus.count_cost(prunus.trace(nn.Linear(8, 4), torch.randn(2, 8)))
        Cost(macs=32, params=36, weights=32)
    """
    return CostModel(graph).dense()
