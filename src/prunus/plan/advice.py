"""What to do about a plan that is no faster than the dense network: read from the widths that were cut."""

from __future__ import annotations

from torch import nn

STEPS = (8, 16, 32, 64)
"""Multiples of channels that kernels take at once, from vectors of CPUs to tiles of GPUs."""


def remedies(dense: nn.Module, pruned: nn.Module, batch_size: int) -> str:
    """Ways out for a plan that is slower than the dense network, the likeliest first.

    Args:
        dense: before.
        pruned: after; names of parameters are the dense model's where they mean the same.
        batch_size: that was measured.
    """
    ways = []
    step = _next_step(dense, pruned)
    if step is not None:
        ways.append(f"prune again with round_to={step}: it left widths that are no multiples of {step}")
    narrowed = _narrowed_depthwise(dense, pruned)
    if narrowed:
        shown = ", ".join(narrowed[:3]) + (f" and {len(narrowed) - 3} more" if len(narrowed) > 3 else "")
        ways.append(f"leave depthwise layers wider, which have few MACs and odd kernels (ignored_layers: {shown})")
    ways.append(f"measure with the batch size you deploy (this was {batch_size})")
    ways.append("remove more, or nothing: small models are bound by the cost of calls and memory traffic, not by MACs")
    return "; ".join(ways)


def _next_step(dense: nn.Module, pruned: nn.Module) -> int | None:
    """The smallest multiple that not all cut widths are, of those at least twice as wide before."""
    before = {name: tuple(p.shape) for name, p in dense.named_parameters()}
    cut = [
        (wide, narrow)
        for name, parameter in pruned.named_parameters()
        for wide, narrow in zip(before.get(name, ()), parameter.shape, strict=False)
        if wide != narrow
    ]
    return next((s for s in STEPS if any(narrow % s and wide >= 2 * s for wide, narrow in cut)), None)


def _narrowed_depthwise(dense: nn.Module, pruned: nn.Module) -> list[str]:
    """Names of the convolutions with a map of its own for every channel that have fewer of them now."""
    after = {name: len(p) for name, p in pruned.named_parameters() if p.dim()}
    return [
        name
        for name, layer in dense.named_modules()
        if isinstance(layer, nn.modules.conv._ConvNd)
        and layer.groups == layer.in_channels > 1
        and after.get(f"{name}.weight", len(layer.weight)) < len(layer.weight)
    ]
