"""A model whose weights stand still: eval mode, no gradients for them, batch norm as the affine map that it then is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.runtime.modes import eval_mode


@contextlib.contextmanager
def frozen(model: nn.Module, *, train_bn: bool = False) -> Iterator[None]:
    """Within the context no parameter needs a gradient and the model is in eval mode; everything is put back.

    Args:
        model: the network; what its code changes in it meanwhile (buffers that count, features it keeps) is undone.
        train_bn: leave batch norm in train mode.
    """
    needs = {p: p.requires_grad for p in model.parameters()}
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if train_bn else []
    try:
        for parameter in needs:
            parameter.requires_grad_(False)
        with eval_mode(model), contextlib.nullcontext() if train_bn else affine_norms(model):
            for norm in norms:
                norm.train()
            yield
    finally:
        for parameter, need in needs.items():
            parameter.requires_grad_(need)


@contextlib.contextmanager
def affine_norms(model: nn.Module) -> Iterator[None]:
    """Within the context the backward pass of a batch norm that stands still is one multiplication.

    torch's own also sums for gradients of scale and shift that nobody asks for, and keeps its input for them.
    The forward pass is the same operation.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    found = [m for m in model.modules() if type(m) in kinds and m.running_mean is not None and "forward" not in vars(m)]
    try:
        for norm in found:
            norm.forward = _forward_of(norm)  # type: ignore[method-assign]
        yield
    finally:
        for norm in found:
            del norm.forward


def _forward_of(norm: Any) -> Callable[[Tensor], Tensor]:
    own = norm.forward

    def forward(input: Tensor) -> Tensor:  # the name is torch's, for calls by keyword
        learns = norm.training or (norm.affine and (norm.weight.requires_grad or norm.bias.requires_grad))
        if learns or not input.requires_grad:
            return own(input)  # type: ignore[no-any-return]
        norm._check_input_dim(input)
        return _Affine.apply(input, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)  # type: ignore[no-any-return, no-untyped-call]

    return forward


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        ctx.save_for_backward(variance, weight)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:  # type: ignore[override]
        variance, weight = ctx.saved_tensors
        scale = (variance + ctx.eps).rsqrt()
        if weight is not None:
            scale = scale * weight
        shape = [1, -1] + [1] * (gradient.dim() - 2)
        return gradient * scale.to(gradient.dtype).view(shape), None, None, None, None, None
