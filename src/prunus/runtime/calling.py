"""Calling a model: inputs by position or keyword, outputs as a flat list, eval mode, no trace left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunus.runtime.arguments import as_arguments, plain, tensors_in
from prunus.runtime.modes import eval_mode


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Floating-point output tensors of one call in eval mode, without gradients."""
    with eval_mode(model), torch.no_grad():
        return flat_outputs(call(model, inputs))


def call(model: nn.Module, inputs: Any) -> Any:
    """Call with positional or keyword inputs."""
    args, kwargs = as_arguments(inputs, model)
    return model(*args, **kwargs)


def flat_outputs(result: Any) -> list[Tensor]:
    """Every floating-point tensor in a nested output."""
    return [t for t in tensors_in(plain(result)) if t.is_floating_point()]


def check_backward(model: nn.Module, inputs: Any) -> None:
    """Run a backward pass without touching any `.grad`. Raises whatever autograd raises."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        return
    with eval_mode(model), torch.enable_grad():
        total = [t.float().sum() for t in flat_outputs(call(model, inputs)) if t.requires_grad]
        if total:
            torch.autograd.grad(torch.stack(total).sum(), trainable, allow_unused=True)
