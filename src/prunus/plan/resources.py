"""Resources: what a network's cost is counted in and what a budget may bound. A new one is one registration.

    @resource("stored", help="bytes of all parameters in fp16", label="bytes", units={"": 1, "kb": 1e3, "mb": 1e6})
    def stored(left: Remains) -> int:
        return 2 * round(float(left.elements[left.layout.trainable].sum()))

From then on `stored<=40kb` is a budget, and plans, tables and model cards have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from prunus.errors import ConfigError
from prunus.graph.grouping import Graph

FloatArray = npt.NDArray[np.float64]
NUMBERS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
"""What may stand behind a plain number, in small letters."""


@dataclass(frozen=True, eq=False)
class Layout:
    """What of a network stays the same whatever goes.

    Attributes:
        graph: the analysed network.
        tensors: row of each parameter, buffer and computed weight in `Remains.shapes`, by name.
        trainable: which of them are parameters: bool [tensors].
        contracted: row of the weight of each of the graph's contractions: int64 [contractions].
        weights: the same, each once.
    """

    graph: Graph
    tensors: Mapping[str, int]
    trainable: npt.NDArray[np.bool_]
    contracted: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Remains:
    """What is left of a network if so many units stay, or if these very units do.

    For counts alone sizes are those of average units, which need not be whole.

    Attributes:
        layout: what stays the same.
        shapes: sizes of every tensor, 1 beyond its last dimension: [tensors, dimensions].
        positions: output positions per example that each contraction's weight is applied to: [contractions].
        elements: of every tensor: [tensors].
    """

    layout: Layout
    shapes: FloatArray
    positions: FloatArray
    elements: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "elements", np.asarray(self.shapes.prod(axis=1)))


Count = Callable[[Remains], int | float | None]


@dataclass(frozen=True)
class Resource:
    """A quantity that a network costs.

    Attributes:
        name: in budgets, in plans and as an attribute of costs.
        help: one line.
        count: how much of it what remains of a network takes; None if that is not known of this network (what is
            measured, not counted, has to be measured first).
        units: what may stand behind a number in a budget, in small letters -> factor.
        label: its row in tables and model cards; "" for none.
        describe: an amount in words.
    """

    name: str
    help: str
    count: Count
    units: Mapping[str, float]
    label: str = ""
    describe: Callable[[int | float], str] = "{:,}".format


RESOURCES: dict[str, Resource] = {}
"""By name, in the order of tables."""
GAUGED = frozenset({"latency", "memory"})
"""What is measured of a network; what is foretold of smaller ones stands in the `gauges` of its graph."""


def resource(
    name: str,
    *,
    help: str,
    units: Mapping[str, float] = NUMBERS,
    label: str = "",
    describe: Callable[[int | float], str] = "{:,}".format,
) -> Callable[[Count], Count]:
    """Register a function that counts a resource; see `Resource` for the arguments.

    Raises:
        ConfigError: a name that is taken or can't be one, units in capital letters.
    """
    taken = name in RESOURCES or hasattr(Mapping, name)
    if taken or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        what = "there is one of that name, or costs have another use for it" if taken else "it is no plain small word"
        raise ConfigError(f"resource {name!r}", what, "choose another name")
    if any(unit != unit.lower() or "%" in unit for unit in units):
        raise ConfigError(f"resource {name!r}", f"its units are {', '.join(units)}", "use small letters")

    def register(count: Count) -> Count:
        RESOURCES[name] = Resource(name, help, count, dict(units), label, describe)
        return count

    return register


def described(name: str, amount: int | float) -> str:
    """An amount in words, also of a resource that is not registered here (in a plan from elsewhere)."""
    return RESOURCES[name].describe(amount) if name in RESOURCES else f"{amount:,}"


def forms() -> str:
    """What a budget may bound, with a line on each: for help texts."""
    return "; ".join(f"{name}: {found.help}" for name, found in sorted(RESOURCES.items()))


@resource(
    "latency",
    help="time of one forward pass as measured, in ms, s or %; see features.md",
    units={"us": 1e-3, "ms": 1.0, "s": 1e3},
    describe=lambda amount: f"{amount:.3g} ms",
)
def latency(left: Remains) -> float | None:
    """Milliseconds, where they were measured of the network."""
    return _gauged("latency", left)


@resource(
    "memory",
    help="most bytes in use in a forward pass: weights, inputs and live activations, in KB, MB, GB or %",
    units={"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30},
    describe=lambda amount: f"{amount / 1e6:,.3g} MB",
)
def memory(left: Remains) -> float | None:
    """Bytes, where they were counted of the network while it ran."""
    return _gauged("memory", left)


@resource(
    "experts",
    help="experts of a layer, the mean of all layers that have some",
    label="experts of a layer",
    describe="{:g}".format,
)
def experts(left: Remains) -> float | None:
    """Experts that stay of a layer; None where there are none."""
    found = []
    for group in left.layout.graph.experts:
        rows = next((s for s in group.slots if s.tensor == group.readers[0].stored), None)
        if rows is not None:  # else the router went with its block
            found.append(float(left.shapes[left.layout.tensors[rows.tensor], rows.dim]))
    return sum(found) / len(found) if found else None


def _gauged(name: str, left: Remains) -> float | None:
    gauge = left.layout.graph.gauges.get(name)
    return None if gauge is None else gauge(left)
