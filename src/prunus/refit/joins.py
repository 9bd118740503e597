"""Sums behind a layer: what the other side of a residual sum gets wrong, as a change of what the layer should make.

Between a layer and a sum there may be what changes each channel by a factor alone, and what only moves elements. Along
that path a difference at the sum is carried back to the layer's own output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from prunus.graph.engine import argument, operation

SAME = {"dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias", "detach", "identity"}
MOVED = {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "unsqueeze", "squeeze", "t", "_unsafe_view"}
SUMS = {"add", "sub"}


@dataclass(frozen=True)
class Step:
    """One operation on the path from a layer to a sum.

    Attributes:
        node: the operation.
        before: what it is applied to.
        other: the other side, where it is a sum.
    """

    node: fx.Node
    before: fx.Node
    other: fx.Node | None = None


def path_to_sums(node: fx.Node) -> tuple[Step, ...]:
    """The operations behind a layer up to the last sum that it reaches; empty if there is none."""
    steps: list[Step] = []
    whole = 0
    while len(node.users) == 1:
        user = next(iter(node.users))
        step = _step(user, node)
        if step is None:
            break
        steps.append(step)
        if step.other is not None:
            whole = len(steps)
        node = user
    return tuple(steps[:whole])


def _step(user: fx.Node, node: fx.Node) -> Step | None:
    if user.op != "call_function" or not user.args:
        return None
    name, first = operation(user), user.args[0] is node
    if name in SUMS:
        other = user.args[1] if first else user.args[0]
        fine = argument(user, 2, "alpha", 1) == 1 and (first or name == "add")
        if not fine or not isinstance(other, fx.Node) or _shape(other) != _shape(node):
            return None
        return Step(user, node, None if other.op == "get_attr" else other)
    if name in SAME | MOVED and first:
        return Step(user, node)
    if name == "batch_norm" and first and argument(user, 3, "running_mean") is not None:
        return Step(user, node)
    if name in ("mul", "div") and (first or name == "mul"):
        other = user.args[1] if first else user.args[0]
        scale = isinstance(other, int | float) or (isinstance(other, fx.Node) and other.op == "get_attr")
        return Step(user, node) if scale and _shape(user) == _shape(node) else None
    return None


def _shape(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return tuple(map(str, value.shape)) if isinstance(value, Tensor) else None


def carried_back(
    steps: tuple[Step, ...], shape: torch.Size, other: Mapping[fx.Node, Tensor], values: Mapping[fx.Node, Any]
) -> Tensor:
    """What a layer's output has to be more, so that the sums behind it come out as in the dense network.

    Args:
        steps: the path, see `path_to_sums`.
        shape: of the layer's output.
        other: sum -> by how much its other side falls short (dense - masked), signed as the sum takes it.
        values: what stored tensors and sizes are.

    Returns:
        A tensor of that shape. Zero in channels that no number on the path lets through.
    """
    shapes = [shape]
    for step in steps:
        shapes.append(_shape_behind(step, shapes[-1], values))
    wanted: Tensor | None = None
    for step, size in zip(reversed(steps), reversed(shapes[:-1]), strict=True):
        name = operation(step.node)
        if wanted is None and step.node not in other:
            continue
        if name in SUMS:
            missing = other.get(step.node)
            wanted = missing if wanted is None else wanted if missing is None else wanted + missing
        elif wanted is not None and name in MOVED:
            wanted = _moved_back(step.node, wanted, size)
        elif wanted is not None and name not in SAME:
            wanted = _divided(wanted, _factor(step, wanted, values))
    assert wanted is not None
    return wanted


def _shape_behind(step: Step, shape: torch.Size, values: Mapping[fx.Node, Any]) -> torch.Size:
    if operation(step.node) not in MOVED:
        return shape
    empty = torch.empty(shape, device="meta")
    fetched = {**dict.fromkeys([step.before], empty)}

    def fetch(node: fx.Node) -> Any:
        return fetched[node] if node in fetched else values[node]

    args, kwargs = (fx.node.map_arg(a, fetch) for a in (step.node.args, step.node.kwargs))
    return step.node.target(*args, **kwargs).shape  # type: ignore[operator]


def _moved_back(node: fx.Node, value: Tensor, shape: torch.Size) -> Tensor:
    name = operation(node)
    if name == "permute":
        order = [int(d) % value.dim() for d in argument(node, 1, "dims")]
        return value.permute([order.index(d) for d in range(len(order))])
    if name == "transpose":
        return value.transpose(int(argument(node, 1, "dim0")), int(argument(node, 2, "dim1")))
    if name == "t":
        return value.t()
    return value.reshape(shape)


def _factor(step: Step, like: Tensor, values: Mapping[fx.Node, Any]) -> Tensor:
    node, name = step.node, operation(step.node)
    if name == "batch_norm":
        weight, variance, eps = argument(node, 1, "weight"), argument(node, 4, "running_var"), argument(node, 7, "eps")
        factor = (values[variance] + eps).rsqrt()
        factor = factor if weight is None else factor * values[weight]
        return factor.reshape(1, -1, *[1] * (like.dim() - 2))
    given = node.args[1] if node.args[0] is step.before else node.args[0]
    number = values[given] if isinstance(given, fx.Node) else given
    factor = torch.as_tensor(number, device=like.device, dtype=like.dtype)
    return factor.reciprocal() if name == "div" else factor


def _divided(value: Tensor, factor: Tensor) -> Tensor:
    small = factor.abs() <= 1e-6 * factor.abs().max().clamp_min(torch.finfo(factor.dtype).tiny)
    return torch.where(small, torch.zeros_like(value), value / torch.where(small, torch.ones_like(factor), factor))


def sign(step: Step) -> int:
    """How the sum takes its other side, as seen from the path: -1 for `path - other`."""
    return -1 if operation(step.node) == "sub" else 1
