"""Labels: which unit owns each element of a tensor, and which labels have been found to be the same unit.

A `Value` is a tensor of the captured graph seen through labels. Its *planes* are integer tensors of the value's number
of dimensions, of size 1 wherever the label does not vary; an element disappears if the unit of any plane does.
A dimension along which no plane varies has a fixed size. Spatial and batch dimensions therefore cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from prunus.graph.groups import IntArray


@dataclass
class Value:
    """A tensor of the graph: its shape with the example inputs, its planes, and the parameter it is, if it is one.

    A plane decides along the last dimension on which it varies; the others index it. `rows` are planes of whole rows
    (heads): what a reshape made of a labelled dimension, its last new dimension apart. `stored` names the parameters
    and buffers that it is computed from if nothing else comes in; None if it depends on the model's input. `constant`
    holds the numbers of a buffer, or of a tensor in the code.
    """

    shape: tuple[int, ...]
    planes: list[Tensor] = field(default_factory=list)
    parameter: str | None = None
    rows: list[Tensor] = field(default_factory=list)
    transposed: bool = False
    stored: frozenset[str] | None = None
    constant: Tensor | None = None

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def varying(self, dim: int) -> list[Tensor]:
        """The planes that vary along `dim`."""
        dim %= max(self.ndim, 1)
        return [p for p in self.planes if p.shape[dim] > 1]


def varying_dims(plane: Tensor) -> tuple[int, ...]:
    """Dimensions along which a plane's labels may differ."""
    return tuple(d for d, size in enumerate(plane.shape) if size > 1)


def owned(plane: Tensor) -> int:
    """The dimension along which a plane decides: the last on which it varies (-1: none)."""
    return max(varying_dims(plane), default=-1)


def along(labels: Tensor, dim: int, ndim: int) -> Tensor:
    """A 1-D label tensor laid along dimension `dim` of an `ndim`-dimensional plane."""
    shape = [1] * ndim
    shape[dim] = labels.numel()
    return labels.reshape(shape)


def align(plane: Tensor, ndim: int) -> Tensor:
    """Pad a plane with leading dimensions of size 1, as broadcasting does."""
    return plane.reshape((1,) * (ndim - plane.dim()) + tuple(plane.shape))


def squeeze_constant(plane: Tensor) -> Tensor:
    """Reduce to size 1 every dimension along which the labels turn out not to vary."""
    for dim in varying_dims(plane):
        first = plane.narrow(dim, 0, 1)
        if bool((plane == first).all()):
            plane = first
    return plane


def view_blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pair the dimensions of a view: the finest blocks of old and new dimensions with equal element counts."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = ([i] if i < len(old) else []), ([j] if j < len(new) else [])
        a, b = (old[i] if left else 1), (new[j] if right else 1)
        i, j = i + len(left), j + len(right)
        while a != b:
            if a < b:
                left.append(i)
                a *= old[i]
                i += 1
            else:
                right.append(j)
                b *= new[j]
                j += 1
        blocks.append((left, right))
    return blocks


def view_plane(plane: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """The labels of a view: only the blocks along which the plane varies are expanded and reshaped."""
    source: list[int] = []
    target: list[int] = []
    for left, right in view_blocks(old, new):
        varies = any(plane.shape[d] > 1 for d in left)
        source += [old[d] if varies else 1 for d in left]
        target += [new[d] if varies else 1 for d in right]
    return squeeze_constant(plane.expand(source).reshape(target))


class Labels:
    """Allocates labels and keeps the union-find over them (pairs collected, components computed on demand)."""

    def __init__(self) -> None:
        self.size = 0
        self._pairs: list[tuple[IntArray, IntArray]] = []
        self._roots: IntArray = np.zeros(0, np.int64)

    def fresh(self, count: int) -> Tensor:
        """`count` new labels as int64 [count]."""
        labels = torch.arange(self.size, self.size + count, device="cpu")
        self.size += count
        return labels

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Declare the labels of two broadcastable planes to be the same units, element by element."""
        a, b = torch.broadcast_tensors(a, b)
        left, right = a.reshape(-1).numpy(), b.reshape(-1).numpy()
        different = left != right
        if different.any():
            self._pairs.append((left[different], right[different]))

    def tie(self, plane: Tensor, dims: Sequence[int]) -> Tensor:
        """Unite the labels along `dims`; returns the plane with size 1 there."""
        for dim in dims:
            if plane.shape[dim] > 1:
                first = plane.narrow(dim, 0, 1)
                self.unite(plane, first)
                plane = first
        return plane

    def roots(self) -> IntArray:
        """Component of every label, int64 [size]."""
        if self._pairs or len(self._roots) < self.size:
            from scipy.sparse import coo_array
            from scipy.sparse.csgraph import connected_components

            known = np.arange(self.size)
            rows = np.concatenate([known[: len(self._roots)], *(p[0] for p in self._pairs)])
            cols = np.concatenate([self._roots, *(p[1] for p in self._pairs)])
            graph = coo_array((np.ones(len(rows), np.int8), (rows, cols)), shape=(self.size, self.size))
            components = connected_components(graph, directed=False)[1].astype(np.int64)
            first = np.full(components.max(initial=-1) + 1, self.size, np.int64)
            np.minimum.at(first, components, known)
            self._roots = first[components]
            self._pairs = []
        return self._roots
