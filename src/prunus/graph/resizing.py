"""Sizes among the arguments of a call in a captured graph, brought in line with what stays: the words of rewriters.

A rewriter is a function of one `Resizing` that changes its `arguments` (or its `copy`, for what is no argument). It
stands beside the rule of the operation, which knows what the labels mean; those that several rules share are here.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import fx

from prunus.graph.engine import Result
from prunus.graph.labels import Value

BoolArray = npt.NDArray[np.bool_]


class Stays(Protocol):
    """What a plan leaves of the graph's values."""

    def line(self, value: Value, dim: int) -> BoolArray | None:
        """Which positions along `dim` stay, or None if nothing varies there."""

    def count(self, value: Value, dim: int) -> int | None:
        """Size along `dim` after removal, or None if nothing varies there."""


@dataclass
class Resizing:
    """One call whose sizes are to become those of what stays.

    Attributes:
        node: the call as it was captured.
        copy: the call in the graph that is being rewritten.
        arguments: of the copy, by position, to be changed in place; assigned to it when the rewriter is done.
        result: labels of what the call returns.
        values: labels of every captured node's result.
        stays: what a plan leaves of values.
    """

    node: fx.Node
    copy: fx.Node
    arguments: list[Any]
    result: Result
    values: Mapping[fx.Node, Result]
    stays: Stays

    @property
    def before(self) -> Value | None:
        """Labels of the first argument, if it is a tensor."""
        first = self.node.args[0] if self.node.args else None
        found = self.values.get(first) if isinstance(first, fx.Node) else None
        return found if isinstance(found, Value) else None

    @property
    def after(self) -> Value | None:
        """Labels of the result, if it is one tensor."""
        return self.result if isinstance(self.result, Value) else None

    def line(self, value: Value, dim: int) -> BoolArray | None:
        """Which positions of a value along `dim` stay: bool [size], or None if all do."""
        return self.stays.line(value, dim)

    def count(self, value: Value, dim: int) -> int | None:
        """A value's size along `dim` after removal, or None if it is the same."""
        return self.stays.count(value, dim)

    def ratio(self, value: Value, dim: int) -> tuple[int, int] | None:
        """The share of positions along `dim` that stays, as a fraction; None if all stay."""
        stays = self.count(value, dim)
        size = value.shape[dim % max(value.ndim, 1)]
        if stays is None or stays == size:
            return None
        common = math.gcd(stays, size)
        return stays // common, size // common

    def resized(self, size: Any, value: Value, dim: int, broadcasts: bool = False) -> Any:
        """What becomes of a size: a number, or one that the graph computes, which is scaled here.

        Args:
            size: as it is in the arguments.
            value: whose size along `dim` it is.
            dim: the dimension.
            broadcasts: 1 stands for any size.
        """
        if isinstance(size, fx.Node):
            ratio = self.ratio(value, dim)
            if ratio is None:
                return size
            graph = self.copy.graph
            with graph.inserting_before(self.copy):
                scaled = graph.call_function(operator.mul, (size, ratio[0]))
                return graph.call_function(operator.floordiv, (scaled, ratio[1]))
        if not isinstance(size, int) or size == -1 or (broadcasts and size == 1):
            return size
        stays = self.count(value, dim)
        return size if stays is None else stays


Rewriter = Callable[[Resizing], None]


def shape_at(index: int, broadcasts: bool = False) -> Rewriter:
    """The rewriter of an operation that is given the shape of its result as argument `index`."""

    def rewrite(call: Resizing) -> None:
        sizes = call.arguments[index]
        if call.after is not None and isinstance(sizes, list | tuple):
            call.arguments[index] = [call.resized(s, call.after, d, broadcasts) for d, s in enumerate(sizes)]

    return rewrite


def position_after(position: Any, stays: BoolArray) -> Any:
    """Where a bound along a dimension lies once only what stays is left; what is no number stays as it is."""
    if not isinstance(position, int):
        return position
    size = len(stays)
    if position >= size:
        return position
    return int(stays[: position % size if position < 0 else position].sum())
