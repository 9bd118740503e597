"""Inputs for a proof: the examples, and random ones of one, two and three examples; nothing from unset memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from prunus.errors import DataError, PlanError
from prunus.graph.groups import ExampleInput
from prunus.plan.plan import Plan
from prunus.runtime.arguments import examples_in

BATCHES = (1, 2, 3)
MOST = 1 << 28
"""Elements of all inputs of a plan together (1 GiB in fp32)."""


def proof_inputs(plan: Plan, example_inputs: Any, model: nn.Module, seed: int = 0) -> list[Any]:
    """Example inputs (if given) first, then random ones of the same shapes and dtypes, on the model's device.

    Integers and booleans are those of the examples, or without examples lie in the range that the plan recorded.

    Raises:
        DataError: the examples hold NaN or infinity; or the plan cannot do without examples.
        PlanError: the plan records inputs that no machine holds.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if example_inputs is None:
        if plan.followed:
            what = "the model branches on data, and random inputs may take another branch than the analysed one"
            raise DataError("example_inputs", what, "pass the example inputs")
        made = _from_plan(plan, generator, device)
        return [made, *_random_batches(made, generator, device)]
    _refuse_nan(example_inputs)
    given = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    return [given] if plan.followed else [given, *_random_batches(given, generator, device)]


def _random_batches(like: Any, generator: torch.Generator, device: torch.device) -> list[Any]:
    """Random inputs of every batch size for which the tensors that have the examples' batch size can be made."""
    size = examples_in(like, none=0)
    sizes = BATCHES if size else (size,)

    def made(batch: int) -> Any:
        return tree_map_only(Tensor, lambda t: _random(t, size, batch, generator, device), like)

    return [made(batch) for batch in sizes]


def _random(value: Tensor, size: int, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
    batched = bool(value.dim()) and value.shape[0] == size
    shape = (batch, *value.shape[1:]) if batched else tuple(value.shape)
    if value.is_floating_point():
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(device, value.dtype)
    if value.is_complex():
        return torch.randn(shape, generator=generator, dtype=torch.complex64, device="cpu").to(device, value.dtype)
    return (value[torch.arange(batch, device=value.device) % size] if batched else value).to(device)


def _from_plan(plan: Plan, generator: torch.Generator, device: torch.device) -> Any:
    if sum(math.prod(entry.shape) for entry in plan.inputs) > MOST:
        what = f"its inputs have more than {MOST:,} elements"
        raise PlanError("plan", what, "pass the example inputs, or make the plan anew from smaller ones")
    made: dict[tuple[str | int, ...], Any] = {}
    for entry in plan.inputs:
        made[entry.path] = _new(entry, generator, device)
    if not made:
        return ()
    positional = [path for path in made if isinstance(path[0], int)]
    if positional:
        return tuple(_nested({p: v for p, v in made.items() if isinstance(p[0], int)}, tuple))
    return _nested(made, dict)


def _nested(made: dict[tuple[str | int, ...], Any], kind: type) -> Any:
    """Values by their paths as tuples (whole numbers) and dicts (names); a place that no tensor takes is None."""
    parts: dict[str | int, dict[tuple[str | int, ...], Any]] = {}
    for path, value in made.items():
        parts.setdefault(path[0], {})[path[1:]] = value
    found = {}
    for key, inner in parts.items():
        found[key] = inner[()] if () in inner else _nested(inner, tuple if _numbered(inner) else dict)
    if kind is dict:
        return found
    return [found.get(number) for number in range(max(k for k in found if isinstance(k, int)) + 1)]


def _numbered(inner: dict[tuple[str | int, ...], Any]) -> bool:
    return all(isinstance(path[0], int) for path in inner)


def _new(entry: ExampleInput, generator: torch.Generator, device: torch.device) -> Tensor:
    kind = getattr(torch, entry.dtype, None)
    if not isinstance(kind, torch.dtype):
        where = ".".join(map(str, entry.path))
        raise DataError("example_inputs", f"argument {where} was {entry.dtype}, not a tensor", "pass the inputs")
    if kind.is_floating_point or kind.is_complex:
        return torch.randn(entry.shape, generator=generator, dtype=torch.float32, device="cpu").to(device, kind)
    if kind == torch.bool:
        return torch.ones(entry.shape, dtype=kind, device=device)
    low, high = (0, 0) if entry.low is None or entry.high is None else (entry.low, entry.high)
    return torch.randint(low, high + 1, entry.shape, generator=generator, dtype=torch.int64, device="cpu").to(
        device, kind
    )


def _refuse_nan(example_inputs: Any) -> None:
    for value in tree_leaves(example_inputs):
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DataError(
                "example_inputs", "they contain NaN or infinity", "pass finite inputs: nothing can be proven on these"
            )
