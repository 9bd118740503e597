"""What stands between a layer and where its output counts: sums with what the layer should make up for, a ReLU.

On the way there may be what changes each channel by a factor alone, and what only moves elements. A difference at the
end is carried back along it to the layer's own output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from prunus.graph.engine import argument, operation
from prunus.refit.inplace import writes

SAME = {"dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias", "detach", "identity"}
MOVED = {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "unsqueeze", "squeeze", "t", "_unsafe_view"}
SUMS, FACTORS = {"add", "sub"}, {"mul", "div"}
CLAMPS: dict[str, Callable[[fx.Node], tuple[float, float]]] = {
    "relu": lambda node: (0.0, float("inf")),
    "relu6": lambda node: (0.0, 6.0),
    "hardtanh": lambda node: (float(argument(node, 1, "min_val", -1.0)), float(argument(node, 2, "max_val", 1.0))),
}
"""Operations that tell no two numbers apart that lie on the same side beyond a bound: (lower, upper)."""


@dataclass(frozen=True)
class Step:
    """One operation on the path.

    Attributes:
        node: the operation.
        before: what it is applied to.
        other: the other side, where it is a sum of two activations.
    """

    node: fx.Node
    before: fx.Node
    other: fx.Node | None = None

    @property
    def sign(self) -> int:
        """How the sum takes its other side, as seen from the path: -1 for `path - other`."""
        return -1 if operation(self.node) == "sub" else 1


@dataclass(frozen=True)
class Path:
    """What stands behind a layer.

    Attributes:
        steps: operations in order, up to the last sum, or to the clamp behind them.
        bounds: of the clamp at its end, None if there is none.
    """

    steps: tuple[Step, ...] = ()
    bounds: tuple[float, float] | None = None

    @property
    def stored(self) -> tuple[fx.Node, ...]:
        """What the steps read that is computed of stored tensors."""
        read = [n for s in self.steps for n in s.node.all_input_nodes if n is not s.before and n is not s.other]
        return tuple(n for n in read if n.op == "call_function" and stored_alone(n))

    @property
    def sums(self) -> tuple[Step, ...]:
        """The steps that are sums of two activations."""
        return tuple(s for s in self.steps if s.other is not None)


def path_behind(node: fx.Node) -> Path:
    """The path from a layer on, as far as nothing else uses what is on it."""
    steps: list[Step] = []
    whole = 0
    while len(node.users) == 1:
        user = next(iter(node.users))
        if operation(user) in CLAMPS and user.args[0] is node:
            return Path(tuple(steps), CLAMPS[operation(user)](user))
        step = _step(user, node)
        if step is None:
            break
        steps.append(step)
        whole = len(steps) if step.other is not None else whole
        node = user
    return Path(tuple(steps[:whole]))


def _step(user: fx.Node, node: fx.Node) -> Step | None:
    if user.op != "call_function" or not user.args:
        return None
    name, first = operation(user), user.args[0] is node
    if name in SUMS | FACTORS and (first or name in ("add", "mul")):
        other = user.args[1] if first else user.args[0]
        if isinstance(other, int | float) or (isinstance(other, fx.Node) and stored_alone(other)):
            return Step(user, node) if _shape(user) == _shape(node) else None
    if name in SUMS:
        fine = argument(user, 2, "alpha", 1) == 1 and (first or name == "add")
        if not fine or not isinstance(other, fx.Node) or other is node or _shape(other) != _shape(node):
            return None
        return Step(user, node, other)
    if name in SAME | MOVED and first:
        return Step(user, node)
    if name == "batch_norm" and first and argument(user, 3, "running_mean") is not None:
        return Step(user, node)
    return None


def stored_alone(node: fx.Node) -> bool:
    """Whether a value is a stored tensor, or computed of nothing else."""
    if node.op != "call_function":
        return node.op == "get_attr"
    return bool(node.all_input_nodes) and all(map(stored_alone, node.all_input_nodes))


def _shape(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return tuple(map(str, value.shape)) if isinstance(value, Tensor) else None


def forward(path: Path, made: Tensor, values: Mapping[fx.Node, Any]) -> list[Tensor]:
    """What a layer's output becomes along the path, step by step, its own output first.

    Args:
        path: behind the layer.
        made: the layer's output.
        values: what everything else on the way holds; of the other side of a sum nothing where it is not known yet:
            zeros stand for it.
    """
    found = [made]
    for step in path.steps:
        here = found[-1]

        def fetch(node: fx.Node, step: Step = step, here: Tensor = here) -> Any:
            if node is step.other and node not in values:
                return torch.zeros_like(here)
            value = here if node is step.before else values[node]
            return value.clone() if writes(step.node) and isinstance(value, Tensor) else value

        args: Any = fx.node.map_arg(step.node.args, fetch)
        kwargs: Any = fx.node.map_arg(dict(step.node.kwargs), fetch)
        found.append(step.node.target(*args, **kwargs))  # type: ignore[operator]
    return found


def carried_back(
    path: Path, end: Tensor | None, missing: Mapping[fx.Node, Tensor], shapes: list[torch.Size],
    values: Mapping[fx.Node, Any],
) -> Tensor:  # fmt: skip
    """What a layer's output has to change by for a change at the end of the path, and at the sums on it.

    Args:
        path: behind the layer.
        end: the change wanted at the end, or None.
        missing: sum -> the change wanted there.
        shapes: of the layer's output and of what every step makes.
        values: what stored tensors hold.

    Returns:
        A tensor of the layer's output's shape; zero in channels that no number on the path lets through.
    """
    wanted = end
    for step, size in zip(reversed(path.steps), reversed(shapes[:-1]), strict=True):
        name = operation(step.node)
        if step.node in missing:
            wanted = missing[step.node] if wanted is None else wanted + missing[step.node]
        if wanted is None or name in SAME | SUMS:
            continue
        wanted = (
            _moved_back(step.node, wanted, size) if name in MOVED else _divided(wanted, _factor(step, wanted, values))
        )
    return torch.zeros(shapes[0]) if wanted is None else wanted


def _moved_back(node: fx.Node, value: Tensor, shape: torch.Size) -> Tensor:
    name = operation(node)
    if name == "permute":
        order = [int(d) % value.dim() for d in argument(node, 1, "dims")]
        return value.permute([order.index(d) for d in range(len(order))])
    if name == "transpose":
        return value.transpose(int(argument(node, 1, "dim0")), int(argument(node, 2, "dim1")))
    return value.t() if name == "t" else value.reshape(shape)


def _factor(step: Step, like: Tensor, values: Mapping[fx.Node, Any]) -> Tensor:
    node, name = step.node, operation(step.node)
    if name == "batch_norm":
        weight, variance = argument(node, 1, "weight"), argument(node, 4, "running_var")
        factor = (values[variance] + argument(node, 7, "eps")).rsqrt()
        factor = factor if weight is None else factor * values[weight]
        return factor.reshape(1, -1, *[1] * (like.dim() - 2))
    given = node.args[1] if node.args[0] is step.before else node.args[0]
    number = values[given] if isinstance(given, fx.Node) else given
    factor = torch.as_tensor(number, device=like.device, dtype=like.dtype)
    return factor.reciprocal() if name == "div" else factor


def _divided(value: Tensor, factor: Tensor) -> Tensor:
    small = factor.abs() <= 1e-6 * factor.abs().max().clamp_min(torch.finfo(factor.dtype).tiny)
    return value * torch.where(small, 0.0, 1 / torch.where(small, 1.0, factor))
