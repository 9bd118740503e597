"""The state of one label run: values of nodes, labels, grids, locks, contractions. Rules write to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from prunus.graph.labels import Labels, Value, align, varying_dims

Result = Value | list[Value]
Rule = Callable[["Engine", fx.Node], Result]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the named aten operations (without overload, without trailing underscore)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


@dataclass(frozen=True)
class Lock:
    """Labels that must stay, why, and where."""

    labels: Tensor
    reason: str
    source: str


@dataclass(frozen=True)
class Call:
    """One convolution or linear call: 1-D labels along the contracted and the produced dimension (None = fixed).

    A stored selection of inputs is a call too, with no positions: it produces units and multiplies nothing. `over`
    holds the planes of labels that lie along the positions to which the weight is applied.
    """

    node: fx.Node
    module: str
    weight: str
    inputs: Tensor | None
    outputs: Tensor | None
    input_dim: int
    positions: int
    depthwise: bool
    over: tuple[Tensor, ...] = ()


@dataclass
class Engine:
    """What the rules read and write while the graph runs on labels."""

    labels: Labels = field(default_factory=Labels)
    values: dict[fx.Node, Result] = field(default_factory=dict)
    parameters: dict[str, Value] = field(default_factory=dict)
    locks: list[Lock] = field(default_factory=list)
    inexact: list[Lock] = field(default_factory=list)
    grids: list[tuple[Tensor, str]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    batch: int = 1

    def value(self, argument: Any) -> Value:
        """The value of a node argument (the first one if the node returned several)."""
        result = self.values[argument]
        return result[0] if isinstance(result, list) else result

    def lock(self, planes: Iterable[Tensor], reason: str, node: fx.Node) -> None:
        """Forbid removal of every label in `planes`."""
        for plane in planes:
            self.locks.append(Lock(plane.reshape(-1), reason, source_line(node)))

    def fixed(self, count: int, reason: str, node: fx.Node) -> Tensor:
        """Fresh labels that may never go: the positions of a tensor whose size is fixed."""
        labels = self.labels.fresh(count)
        self.lock([labels], reason, node)
        return labels

    def parameter_plane(self, value: Value, dim: int) -> Tensor | None:
        """1-D labels of a value along `dim`, or None if its size there is fixed."""
        planes = value.varying(dim)
        if not planes:
            return None
        others = [d for d in range(value.ndim) if d != dim % value.ndim]
        lines = [self.labels.tie(p, others).reshape(-1) for p in planes]
        for other in lines[1:]:
            self.labels.unite(lines[0], other)
        return lines[0]

    def merge(self, operands: Sequence[Value], shape: Sequence[int], node: fx.Node) -> list[Tensor]:
        """Planes of an element-wise combination: planes that share a dimension are united, fixed sizes lock."""
        ndim = len(shape)
        merged: list[Tensor] = []
        for plane in (align(p, ndim) for operand in operands for p in operand.planes):
            for other in [m for m in merged if set(varying_dims(m)) & set(varying_dims(plane))]:
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

    def _fixed_operand(self, plane: Tensor, operands: Sequence[Value], ndim: int) -> Value | None:
        for operand in operands:
            sizes = (1,) * (ndim - operand.ndim) + operand.shape
            for dim in varying_dims(plane):
                offset = dim - (ndim - operand.ndim)
                if sizes[dim] > 1 and not operand.varying(offset):
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


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument of the node's operation, given by position or by name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def operation(node: fx.Node) -> str:
    """Name of a node's operation without namespace, overload and in-place underscore."""
    target = node.target
    name = target.__name__ if not isinstance(target, str) else target
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[-1]
    return name.rstrip("_") if not name.startswith("_") else name


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
    return tuple(int(s) if isinstance(s, int) else int(s.node.hint) for s in value.shape)


def meta_value(meta: Any) -> Result:
    """A value without planes (everything fixed) for whatever the node returned."""
    if isinstance(meta, Tensor):
        return Value(meta_shape(meta))
    if isinstance(meta, list | tuple):
        return [Value(meta_shape(m)) if isinstance(m, Tensor) else Value(()) for m in meta]
    return Value(())
