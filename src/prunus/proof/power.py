"""The negative control of a proof: of which readers a wrong cut would be seen in what is compared.

One backward pass through the masked model tells how much every input position of every reader matters. Where that is
little, the control is made outright: one more position is masked, and the comparison has to see it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prunus.plan.plan import Plan
from prunus.proof.comparison import compare, named_tensors
from prunus.proof.masked import kept_positions, masked, recorded_layers
from prunus.runtime.arguments import as_arguments
from prunus.runtime.modes import eval_mode

CLEARLY = 100.0
"""A derivative of so many times the tolerance needs no control."""


def weak_readers(model: nn.Module, plan: Plan, inputs: Any, tolerance: float) -> dict[int, int]:
    """Readers whose inputs hardly move the outputs: number of the masked entry -> a position that stays."""
    entries = {n: e for n, e in enumerate(plan.masked) if e.removed}
    # What a choice adds to the logits of experts has no slope; it goes with the rows that make them.
    entries = {n: e for n, e in entries.items() if not e.routing or e.product >= 0}
    gates = {n: kept_positions(e).requires_grad_() for n, e in entries.items()}
    if not gates:
        return {}
    args, kwargs = as_arguments(inputs, model)
    slopes: dict[int, Tensor] = {}
    with eval_mode(model), torch.enable_grad(), masked(model, plan, gates):
        try:
            total = _mixed(named_tensors(model(*args, **kwargs)))
            found = torch.autograd.grad(total, list(gates.values()), allow_unused=True) if total.requires_grad else ()
            slopes = {n: g.abs() for n, g in zip(gates, found, strict=False) if g is not None}
        except RuntimeError:
            slopes = {}  # without gradients every reader is tried
    weak = {}
    for number, gate in gates.items():
        stays = gate.detach() > 0
        slope = slopes.get(number, torch.zeros_like(stays, dtype=torch.float32))
        slope = torch.where(stays, slope, -1.0)
        if not float(slope.max()) > CLEARLY * tolerance:
            weak[number] = _largest(model, plan, number, slope)
    return weak


def _mixed(tensors: dict[str, Tensor]) -> Tensor:
    """All numbers of all outputs in units of their channel's largest, with random signs (the same every time)."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(())
    for tensor in tensors.values():
        if tensor.is_floating_point() and tensor.numel():
            flat = tensor.double() if tensor.dim() > 1 else tensor.double().reshape(1, -1)
            scale = flat.detach().abs().amax([d for d in range(flat.dim()) if d != 1], keepdim=True)
            signs = torch.randint(0, 2, flat.shape, generator=generator, device="cpu").to(flat) * 2 - 1
            finite = torch.where(flat.isfinite(), flat, 0.0)
            total = total.to(flat) + (finite / scale.clamp_min(1e-30) * signs).sum()
    return total


def _largest(model: nn.Module, plan: Plan, number: int, slope: Tensor) -> int:
    """The position to try: the steepest, and if nothing is steep the one with the largest weights."""
    entry = plan.masked[number]
    with eval_mode(model):
        weight = getattr(model.get_submodule(entry.module), "weight", None)
    axis = entry.axis if entry.output else 1
    if float(slope.max()) <= 0 and isinstance(weight, Tensor) and weight.dim() > 1 and weight.shape[axis] == entry.size:
        size = weight.detach().abs().float().movedim(axis, 0).flatten(1).sum(1).cpu()
        slope = torch.where(slope >= 0, size, -1.0)
    return int(slope.argmax())


def unseen_readers(
    model: nn.Module, plan: Plan, inputs: Any, weak: dict[int, int], tolerance: float, floor: float, *, layers: bool
) -> dict[int, int]:
    """Those of the weak readers whose wrong cut the comparison really does not see.

    Args:
        model: the dense model.
        plan: what goes.
        inputs: one batch.
        weak: what `weak_readers` found.
        tolerance: what the comparison allows.
        floor: as for `compare`.
        layers: compare what layers make too.
    """
    if not weak:
        return {}
    right = _run(model, plan, inputs, {}, layers)
    unseen = {}
    for number, position in weak.items():
        gate = kept_positions(plan.masked[number])
        gate[position] = 0
        seen = compare([right], [_run(model, plan, inputs, {number: gate}, layers)], floor)
        if seen.problem is None and seen.error <= tolerance:
            unseen[number] = position
    return unseen


def _run(model: nn.Module, plan: Plan, inputs: Any, gates: dict[int, Tensor], layers: bool) -> dict[str, Tensor]:
    args, kwargs = as_arguments(inputs, model)
    with eval_mode(model), torch.no_grad(), masked(model, plan, gates), recorded_layers(model, plan) as notes:
        found = named_tensors(model(*args, **kwargs))
    return {**found, **named_layers(notes.items())} if layers else found


def named_layers(layers: Iterable[tuple[str, list[Tensor]]]) -> dict[str, Tensor]:
    """What layers made, one name for every call."""
    return {f"layer {name}" + (f" ({i})" if i else ""): t for name, calls in layers for i, t in enumerate(calls)}
