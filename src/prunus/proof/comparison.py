"""Outputs of two networks held against each other: every tensor, and every channel by its own scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunus.runtime.arguments import plain
from prunus.runtime.precision import dtype_name

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Relative differences that rounding may make, by the coarsest format that was computed in."""
Named = Mapping[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """How far two sets of tensors are apart.

    Attributes:
        error: largest difference of a channel, relative to the largest number of that channel in the reference.
        errors: the same for every floating-point or complex tensor.
        equal: tensors of integers and booleans that are equal.
        problem: why they can't be the same whatever the rounding (other shapes, other integers), or None.
    """

    error: float
    errors: dict[str, float]
    equal: tuple[str, ...]
    problem: str | None


def named_tensors(result: Any, name: str = "output") -> dict[str, Tensor]:
    """Every tensor in a nested result, in order, by its place."""
    result = result if isinstance(result, Tensor) else plain(result)
    if isinstance(result, Tensor):
        return {name: result}
    if isinstance(result, Mapping):
        parts = [(f"{name}[{key!r}]", value) for key, value in result.items()]
    elif isinstance(result, Sequence) and not isinstance(result, str | bytes):
        parts = [(f"{name}[{number}]", value) for number, value in enumerate(result)]
    else:
        leaves = torch.utils._pytree.tree_leaves(result)
        parts = [] if len(leaves) == 1 and leaves[0] is result else [(f"{name}[{i}]", v) for i, v in enumerate(leaves)]
    return {key: tensor for part, value in parts for key, tensor in named_tensors(value, part).items()}


def compare(reference: Sequence[Named], found: Sequence[Named], floor: float) -> Difference:
    """Compare batch by batch.

    Args:
        reference: by batch, what is right.
        found: by batch, what is judged.
        floor: channels smaller than this share of their tensor's largest number are measured by that share.
    """
    errors: dict[str, float] = {}
    equal: dict[str, None] = {}
    for right, judged in zip(reference, found, strict=True):
        if right.keys() != judged.keys():
            odd = sorted(right.keys() ^ judged.keys())
            return Difference(float("inf"), errors, (), f"{odd[0]} is there in one of the two alone")
        for name, a in right.items():
            b = judged[name]
            if a.shape != b.shape:
                what = f"{name} has the shape {tuple(b.shape)} instead of {tuple(a.shape)}"
                return Difference(float("inf"), errors, (), what)
            if not (a.is_floating_point() or a.is_complex()):
                if not torch.equal(a, b.to(a.dtype)):
                    return Difference(float("inf"), errors, (), f"{name} ({dtype_name(a.dtype)}) has other numbers")
                equal[name] = None
            elif a.numel():
                errors[name] = max(errors.get(name, 0.0), channel_error(a, b, floor))
    return Difference(max(errors.values(), default=0.0), errors, tuple(equal), None)


def channel_error(a: Tensor, b: Tensor, floor: float) -> float:
    """Largest difference of any channel, relative to the largest number of that channel in `a`.

    Channels are the positions of dimension 1 and of the last one. Infinite and undefined numbers must be the same.
    """
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    a, b = a.detach().to("cpu", torch.float64), b.detach().to("cpu", torch.float64)
    same = (a == b) | (a.isnan() & b.isnan())
    apart = torch.where(same, 0.0, (a - b).abs()).nan_to_num(float("inf"), float("inf"))
    size = torch.where(a.isfinite(), a, 0.0).abs()
    least = max(floor * float(size.max()), torch.finfo(torch.float32).tiny)
    worst = 0.0
    for dim in {1, a.dim() - 1} if a.dim() > 1 else {-1}:
        others = [d for d in range(a.dim()) if d != dim] if dim >= 0 else list(range(a.dim()))
        if others:
            scale, gap = size.amax(others), apart.amax(others)
        else:
            scale, gap = size, apart
        worst = max(worst, float((gap / scale.clamp_min(least)).max()))
    return worst


def difference(reference: Sequence[Sequence[Tensor]], found: Sequence[Sequence[Tensor]]) -> tuple[float, float]:
    """Largest difference of any channel by its scale, and what the dtype allows; infinity if shapes differ."""
    coarse = [t.dtype for batch in reference for t in batch]
    tolerance = max((TOLERANCE.get(d, 0.0) for d in coarse), default=TOLERANCE[torch.float32])
    pairs = [[{str(i): t for i, t in enumerate(batch)} for batch in side] for side in (reference, found)]
    judged = compare(pairs[0], pairs[1], torch.finfo(torch.float32).eps / tolerance)
    return (float("inf") if judged.problem else judged.error), tolerance


def has_nan(tensors: Named) -> str | None:
    """Name of the first tensor with an undefined number."""
    for name, tensor in tensors.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and bool(tensor.isnan().any()):
            return name
    return None


def describe(name: str, tensor: Tensor) -> str:
    """`output[0]: float32 [2, 10]`."""
    return f"{name}: {dtype_name(tensor.dtype)} {list(tensor.shape)}"
