"""The state of one label run: values of nodes, labels, grids, locks, contractions. Rules write to it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from prunus.graph.groups import Norm, Selection
from prunus.graph.labels import Labels, Value, align, owned, varying_dims
from prunus.graph.notes import Call, Free, Lock, Rows, Stored, Summed

Result = Value | list[Value]

UNKNOWN = 101
"""Stands for sizes that depend on data: a prime, so that no view takes it apart."""


@dataclass
class Engine:
    """What the rules read and write while the graph runs on labels.

    A rule reads `values` and `parameters`, unites `labels`, and tells the rest by verbs: `lock`, `statistics_over`,
    `equal_counts`, `sum_over`, `combine`, `adopt_along`, `new_free`; products with weights go through
    `rules.contraction.record`.

    Attributes:
        labels: the labels and what was found to be the same unit.
        values: what each node returned.
        parameters: parameters, buffers and computed weights by name.
        batch: examples in the example inputs.
        locks: labels that stay.
        inexact: labels whose removal is not masking.
        grids: labels of which as many stay in every row (all dimensions but the last), and why.
        calls: calls of layers.
        summed: labels that a product, a sum or a norm takes together.
        norms: weight norms.
        selections: selections of units by a known index.
        rows: whole rows.
        free: dimensions along which a tensor is the same everywhere.
        stored: what is made of stored tensors alone.
    """

    labels: Labels = field(default_factory=Labels)
    values: dict[fx.Node, Result] = field(default_factory=dict)
    parameters: dict[str, Value] = field(default_factory=dict)
    batch: int = 1
    locks: list[Lock] = field(default_factory=list)
    inexact: list[Lock] = field(default_factory=list)
    grids: list[tuple[Tensor, str]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    summed: list[Summed] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    selections: dict[fx.Node, Selection] = field(default_factory=dict)
    rows: Rows = field(default_factory=Rows)
    free: Free = field(default_factory=Free)
    stored: Stored = field(default_factory=Stored)

    def value(self, argument: Any) -> Value:
        """The value of a node argument (the first one if the node returned several)."""
        result = self.values[argument]
        return result[0] if isinstance(result, list) else result

    def lock(self, planes: Iterable[Tensor], reason: str, node: fx.Node, whole: bool = False) -> None:
        """Forbid removal of every label in `planes`, and with `whole` of rows that are made over them later.

        What locks parts of stored tensors locks rows as well: weights are computed before anything lies in rows.
        """
        operands = [self.values.get(n) for n in node.all_input_nodes]
        whole = whole or (bool(operands) and all(isinstance(v, Value) and v.stored is not None for v in operands))
        for plane in planes:
            self.locks.append(Lock(plane.reshape(-1), reason, source_line(node), whole))

    def statistics_over(self, planes: Iterable[Tensor], reason: str, node: fx.Node, whole: bool = False) -> None:
        """Statistics are taken across these labels: removal is not masking. `whole` as in `lock`."""
        for plane in planes:
            self.inexact.append(Lock(plane.reshape(-1), reason, source_line(node), whole))

    def equal_counts(self, plane: Tensor, why: str) -> None:
        """As many units must stay in each row of the plane (every dimension but the last one that varies)."""
        self.grids.append((plane, why))

    def sum_over(self, plane: Tensor, node: fx.Node, operands: Sequence[fx.Node], length: bool = False) -> None:
        """The node takes these labels together, and `operands` carry them; see `Summed`."""
        self.summed.append(Summed(plane, node, tuple(operands), length))

    def fixed(self, count: int, reason: str, node: fx.Node) -> Tensor:
        """Fresh labels that may never go: the positions of a tensor whose size is fixed."""
        labels = self.labels.fresh(count)
        self.lock([labels], reason, node)
        return labels

    def parameter_plane(self, value: Value, dim: int) -> Tensor | None:
        """1-D labels of a value along `dim`, or None if its size there is fixed."""
        lines = self.lines(value, dim)
        for other in lines[1:]:
            self.labels.unite(lines[0], other)
        return lines[0] if lines else None

    def lines(self, value: Value, dim: int) -> list[Tensor]:
        """1-D labels of each of a value's planes along `dim`."""
        others = [d for d in range(value.ndim) if d != dim % value.ndim]
        return [self.labels.tie(p, others).reshape(-1) for p in value.varying(dim)]

    def merge(self, operands: Sequence[Value], shape: Sequence[int], node: fx.Node) -> list[Tensor]:
        """Planes of an element-wise combination: planes that share a dimension are united, fixed sizes lock."""
        ndim = len(shape)
        merged: list[Tensor] = []
        for plane in (align(p, ndim) for operand in operands for p in operand.planes):
            for other in [m for m in merged if set(varying_dims(m)) & set(varying_dims(plane))]:
                if owned(plane) != owned(other) and self._rowed(operands, plane, other, ndim):
                    continue
                if self.is_free(plane) != self.is_free(other):
                    apart, plane = (plane, other) if self.is_free(plane) else (other, plane)
                    self.free.met.append((apart, plane))
                    merged = [m for m in merged if m is not other]
                    continue
                self.labels.unite(plane, other)
                plane = plane.expand(torch.broadcast_shapes(other.shape, plane.shape))
                merged = [m for m in merged if m is not other]
            if varying_dims(plane):
                merged.append(plane)
        kept = []
        for plane in merged:
            clash = self._fixed_operand(plane, operands, ndim)
            if clash is None:
                kept.append(plane)
            else:
                self.lock([plane], f"meets a tensor of fixed size {tuple(clash.shape)} in {operation(node)}", node)
        return kept

    def combine(self, operands: Sequence[Value], shape: Sequence[int], node: fx.Node) -> Value:
        """The value of an element-wise combination: planes and rows of its operands, united where they meet."""
        ndim = len(shape)
        rows = self.merge_rows(operands, shape, node)
        planes = self.merge(operands, shape, node)
        # What stood for whole rows alone (a scale per head) is the rows now.
        alone = {owned(r) for r in rows} - {o for r in rows if self._flat(operands, o := owned(r), ndim)}
        planes = [p for p in planes if not (owned(p) in alone and len(varying_dims(p)) == 1)]
        return Value(tuple(shape), planes, rows=rows)

    @staticmethod
    def _flat(operands: Sequence[Value], own: int, ndim: int) -> bool:
        """True if columns lie along the same dimension as whole rows: the reshape that made the rows was undone."""
        return any(owned(align(p, ndim)) == own for o in operands if _has_rows(o, own, ndim) for p in o.planes)

    def merge_rows(self, operands: Sequence[Value], shape: Sequence[int], node: fx.Node) -> list[Tensor]:
        """Row planes of an element-wise combination: those of one dimension are united, fixed sizes lock."""
        ndim = len(shape)
        rows: dict[int, Tensor] = {}
        for plane in (align(p, ndim) for operand in operands for p in operand.rows):
            own = owned(plane)
            if own in rows:
                self.labels.unite(plane, rows[own])
                plane = plane.expand(torch.broadcast_shapes(plane.shape, rows[own].shape))
            rows[own] = plane
        for own, plane in rows.items():
            flat = self._flat(operands, own, ndim)
            for operand in operands:
                self._meet_rows(plane, own, operand, flat, ndim, node)
        return list(rows.values())

    def _meet_rows(self, plane: Tensor, own: int, operand: Value, flat: bool, ndim: int, node: fx.Node) -> None:
        offset = own - (ndim - operand.ndim)
        if offset < 0 or operand.shape[offset] == 1 or _has_rows(operand, own, ndim):
            return
        lines = [p for p in (align(q, ndim) for q in operand.planes) if varying_dims(p) == (own,)]
        if len(lines) != 1 or len(operand.varying(offset)) > 1 or varying_dims(plane) != (own,):
            self.lock([plane], f"whole rows meet a tensor of fixed size {operand.shape} in {operation(node)}", node)
        elif flat:
            self.adopt(lines[0].reshape(-1), plane.reshape(-1), node)
        else:
            self.labels.unite(lines[0], plane)

    def _rowed(self, operands: Sequence[Value], a: Tensor, b: Tensor, ndim: int) -> bool:
        """True if the plane that decides along the earlier dimension meets rows there, not the other's columns."""
        own = min(owned(a), owned(b))
        return any(_has_rows(o, own, ndim) for o in operands)

    def new_free(self, count: int) -> Tensor:
        """Labels along a dimension where a tensor is the same everywhere: they become those of what it meets."""
        labels = self.labels.fresh(count)
        self.free.labels.update(labels.tolist())
        return labels

    def is_free(self, plane: Tensor) -> bool:
        """True if a plane consists of labels made by `new_free`."""
        flat = plane.reshape(-1)
        return int(flat[0]) in self.free.labels and self.free.labels.issuperset(flat.tolist())

    def new_rows(self, shape: Sequence[int]) -> Tensor:
        """Fresh labels for whole rows, as a plane of this shape."""
        labels = self.labels.fresh(math.prod(shape))
        self.rows.made.append(labels)
        return labels.reshape(tuple(shape))

    def adopt(self, columns: Tensor, rows: Tensor, node: fx.Node) -> None:
        """Give every parameter whose positions are among `columns` the rows that lie over them."""
        roots = self.labels.roots()
        keys, values = roots[columns.numpy()], rows.numpy()
        order = np.argsort(keys, kind="stable")
        keys, values = keys[order], values[order]
        first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        if (roots[values] != np.repeat(roots[values[first]], np.diff(np.r_[first, len(keys)]))).any():
            self.lock([rows], "the same unit lies in several rows", node)
            return
        if self.rows.nobody < 0:
            self.rows.nobody = int(self.labels.fresh(1))
        row_of = np.full(self.labels.size, self.rows.nobody)
        row_of[keys[first]] = values[first]
        roots = self.labels.roots()
        self.inherit(columns, rows)
        known = np.flatnonzero(row_of[roots] != self.rows.nobody)
        self.rows.adopted.append((known, row_of[roots[known]]))
        for value in self.parameters.values():
            for plane in [p for p in value.planes if len(varying_dims(p)) == 1]:
                line = row_of[roots[plane.numpy()]]
                if (line != self.rows.nobody).any() and not any(np.array_equal(line, r.numpy()) for r in value.rows):
                    value.rows.append(torch.from_numpy(line))

    def inherit(self, columns: Tensor, rows: Tensor) -> None:
        """Rows over positions that were mixed with each other before there were rows stay with them."""
        roots = self.labels.roots()
        keys, values = roots[columns.reshape(-1).numpy()], rows.reshape(-1).numpy()
        for locks in (self.locks, self.inexact):
            for lock in [lock for lock in locks if lock.whole]:
                own = np.isin(keys, roots[lock.labels.numpy()])
                if own.any():
                    locks.append(Lock(torch.from_numpy(np.unique(values[own])), lock.reason, lock.source))

    def adopt_along(self, value: Value, dim: int, node: fx.Node) -> list[Tensor]:
        """Per-channel parameters of a value learn of the whole rows that lie over its channels; the rows pass."""
        columns = self.parameter_plane(value, dim)
        for row in value.rows:
            if row.shape[dim] > 1 and columns is not None and len(varying_dims(row)) == 1:
                self.adopt(columns, row.reshape(-1), node)
            elif row.shape[dim] > 1:
                self.lock([row], f"no rule for whole rows in {operation(node)}", node)
        return list(value.rows)

    def lock_rows(self, values: Iterable[Value], node: fx.Node) -> None:
        """Whole rows that come to an operation whose rule knows nothing of them stay."""
        self.lock([r for v in values for r in v.rows], f"no rule for whole rows in {operation(node)}", node)

    def _fixed_operand(self, plane: Tensor, operands: Sequence[Value], ndim: int) -> Value | None:
        for operand in operands:
            sizes = (1,) * (ndim - operand.ndim) + operand.shape
            for dim in varying_dims(plane):
                offset = dim - (ndim - operand.ndim)
                if sizes[dim] > 1 and not operand.varying(offset) and not _has_rows(operand, dim, ndim):
                    return operand
        return None

    def unite_vector(self, parameter: fx.Node | None, labels: Tensor | None, node: fx.Node) -> None:
        """Unite a per-channel parameter [C] with the channels' labels; a fixed dimension fixes the parameter."""
        if not isinstance(parameter, fx.Node):
            return
        own = self.parameter_plane(self.value(parameter), 0)
        if own is None:
            if labels is not None and labels.numel() > 1:
                self.lock([labels], "meets a per-channel tensor that is computed, not stored", node)
        elif labels is None:
            self.lock([own], f"belongs to channels of fixed size in {operation(node)}", node)
        else:
            self.labels.unite(own, labels)


def _has_rows(operand: Value, own: int, ndim: int) -> bool:
    return any(owned(align(r, ndim)) == own for r in operand.rows)


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument of the node's operation, given by position or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def operation(node: fx.Node) -> str:
    """Name of a node's operation; see `operation_name`."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return operation_name(target._schema.name)
    return operation_name(target if isinstance(target, str) else getattr(target, "__name__", str(target)))


def operation_name(schema: str) -> str:
    """Without overload and in-place underscore, torch's own without namespace: `add`, `mylib::add`."""
    namespace, _, name = schema.rpartition("::")
    name = name if name.startswith("_") else name.rstrip("_")
    return name if namespace in ("", "aten") else f"{namespace}::{name}"


def source_line(node: fx.Node) -> str:
    """The user's source line that made the node: `file.py:12  code`, or the module's name if no trace was kept."""
    trace = node.meta.get("stack_trace") or ""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]+\n\s*([^\n]*)', trace)
    own = [f for f in frames if "/torch/" not in f[0].replace("\\", "/")]
    if own:
        path, line, code = own[-1]
        return f"{path.replace(chr(92), '/').rsplit('/', 1)[-1]}:{line}  {code.strip()}"
    return module_path(node) or node.name


def module_path(node: fx.Node) -> str:
    """Name of the submodule that made the call ('' for the model itself)."""
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] if stack else ""


def meta_shape(value: Any) -> tuple[int, ...]:
    """Shape of a node's example value; symbolic sizes become their value in the example."""
    return tuple(_in_example(s) for s in value.shape)


def example_size(node: fx.Node) -> int:
    """What a node that computes a size is in the example."""
    return _in_example(node.meta["val"])


def depends_on_data(node: fx.Node) -> bool:
    """Whether a node's result has a size that is known only while the model runs on something."""
    sizes = getattr(node.meta.get("val"), "shape", ())
    return any(not isinstance(s, int) and s.node.hint is None for s in sizes)


def _in_example(size: Any) -> int:
    """A size in the example; one that depends on data (how many positions a mask has) is known only while running."""
    if isinstance(size, int):
        return size
    if size.node.hint is not None:
        return int(size.node.hint)
    expression = size.node.expr
    return int(expression.xreplace(dict.fromkeys(expression.free_symbols, UNKNOWN)))


def meta_value(meta: Any) -> Result:
    """A value without planes (everything fixed) for whatever the node returned."""
    if isinstance(meta, Tensor):
        return Value(meta_shape(meta))
    if isinstance(meta, list | tuple):
        return [Value(meta_shape(m)) if isinstance(m, Tensor) else Value(()) for m in meta]
    return Value(())
