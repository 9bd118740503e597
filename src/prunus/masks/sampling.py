"""Exactly k of n without replacement by Gumbel top-k, and the gradient of its relaxation in O(n) memory.

The relaxed mask is the sum of k softmaxes, the t-th over what the t - 1 draws before it left over. Written out it needs
k n numbers per row; but its value at i is exp(z_i) A with A the sum of 1 / D_t over the draws up to i's own (all of
them if i was not drawn) and D_t the sum of exp(z) over what was left before draw t: scans over the k drawn are enough.
Dynamic probabilistic pruning (Gonzalez-Carabarin et al., arXiv 2105.12686) for the method; the O(n) form is ours.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from prunus.errors import ConfigError, DataError
from prunus.kernels import masks as kernels
from prunus.kernels.noise import key_of, random_bits

Order = Literal["draw", "index"]
BLOCK = 65_536
"""Elements that the backward pass works on at once."""


def gumbel(rows: int, n: int, seed: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Standard Gumbel noise, fp32 [rows, n]; the same seed gives the same numbers on every process of a device type.

    On CPUs it is -log(-log(1 - u)) of 31 random bits, u = (i + 1/2) / 2^31: exact in the upper tail, where masks are
    decided. With and without numba the numbers agree to rounding.
    """
    if torch.device(device).type == "cpu":
        if kernels.available():
            return torch.from_numpy(kernels.gumbel(rows, n, seed))
        u = torch.from_numpy(random_bits(rows, n, seed)).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
        return u.neg_().log1p_().neg_().log_().neg_()
    stream = torch.Generator(device).manual_seed(int(key_of(seed)) >> 1)
    smallest = 2.0**-25  # half the generator's resolution: what an exponential of exactly zero is taken for
    noise = torch.empty(rows, n, device=device, dtype=torch.float32).exponential_(generator=stream)
    return noise.clamp_(min=smallest).log_().neg_()


def largest(scores: Tensor, k: int) -> Tensor:
    """Which k of each row are the largest: bool [R, n] with exactly k True in every row; of equals the first go in.

    Args:
        scores: [R, n].
        k: 1 <= k <= n.

    Raises:
        ConfigError: k out of range.
        DataError: NaN among the scores.
    """
    n = scores.shape[1]
    if not 1 <= k <= n:
        raise ConfigError("k", f"{k} of {n} elements", f"ask for 1 to {n}")
    if k == n:
        return torch.ones_like(scores, dtype=torch.bool)
    if scores.device.type == "cpu":
        limit = torch.from_numpy(kth_largest(scores, k)[:, None])
    else:
        limit = scores.detach().kthvalue(n - k + 1, dim=1, keepdim=True).values
    mask = scores >= limit
    # No row has fewer than k, so the total tells whether each has exactly k.
    if _count(mask) != k * len(mask):
        above, equal = scores > limit, scores == limit
        room = k - above.sum(1, keepdim=True)
        mask = above | (equal & (equal.cumsum(1) <= room))
        if bool((mask.sum(1) != k).any()):
            raise DataError("logits", "NaN among what is ranked", "lower lr or logit_lr_mult, or look at the data")
    return mask


def kth_largest(scores: Tensor, k: int) -> np.ndarray:
    """The k-th largest of every row of [R, n] on a CPU: [R]."""
    place = scores.shape[1] - k
    return np.partition(scores.detach().numpy(), place, axis=1)[:, place]


def _count(mask: Tensor) -> int:
    return int(np.count_nonzero(mask.numpy())) if mask.device.type == "cpu" else int(mask.sum())


def sample(
    logits: Tensor,
    k: int,
    noise: Tensor | None,
    *,
    temperature: float = 1.0,
    noise_scale: float = 1.0,
    order: Order = "draw",
) -> Tensor:
    """A mask with exactly k ones per row; its gradient is that of the relaxed mask (straight through).

    Args:
        logits: [R, n], fp32 or fp64.
        k: ones per row, 1 <= k <= n.
        noise: standard Gumbel noise [R, n]; None gives the mode, the k largest logits.
        temperature: T > 0 of the relaxation; the mask itself does not depend on it.
        noise_scale: c of logits + c noise: the draw is one from softmax(logits / c).
        order: in which order the relaxation takes the drawn out: as they were drawn, or by their index (as the
            authors' released code does).

    Returns:
        Zeros and ones, [R, n], of the logits' dtype.

    Raises:
        ConfigError: k, temperature or noise_scale out of range.
    """
    if not temperature > 0 or noise_scale < 0:
        what = f"temperature={temperature}, noise_scale={noise_scale}"
        raise ConfigError("sampling", what, "the temperature must be above 0, the noise scale not below")
    perturbed = perturb(logits, noise, noise_scale)
    mask = largest(perturbed, k)
    drawn = _StraightThrough.apply(logits, perturbed, mask, k, temperature, order)
    assert isinstance(drawn, Tensor)
    return drawn


def perturb(logits: Tensor, noise: Tensor | None, noise_scale: float) -> Tensor:
    """logits + c noise, detached."""
    return logits.detach() if noise is None else logits.detach().add(noise, alpha=noise_scale)


def relaxed(z: Tensor, mask: Tensor, k: int, order: Order = "draw") -> Tensor:
    """The relaxed mask, differentiable by autograd, in logarithms throughout: [R, n], rows sum to k.

    Args:
        z: (logits + c noise) / T, [R, n].
        mask: what was drawn, bool [R, n], k per row.
        k: ones per row.
        order: see `sample`.
    """
    index = _in_order(z, mask, k, order)
    drawn = z.gather(1, index)
    rest = z.masked_fill(mask, -math.inf)
    left = torch.logsumexp(rest, 1, keepdim=True) if k < z.shape[1] else z.new_full((len(z), 1), -math.inf)
    log_d = torch.cat([left, drawn.flip(1)], 1)
    log_d = torch.logcumsumexp(log_d, 1)[:, 1:].flip(1)
    log_a = torch.logcumsumexp(-log_d, 1)
    soft = (rest + log_a[:, -1:]).exp()
    return soft.scatter(1, index, (drawn + log_a).exp())


class _StraightThrough(torch.autograd.Function):
    """Forward: the hard mask. Backward: the vector-Jacobian product of `relaxed`, in closed form."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, perturbed: Tensor, mask: Tensor, k: int, temperature: float, order: Order
    ) -> Tensor:
        ctx.save_for_backward(perturbed, mask)
        ctx.settings = k, temperature, order
        return mask.to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        perturbed, mask = ctx.saved_tensors
        found = vector_jacobian(perturbed, mask, gradients[0].clone(), *ctx.settings)
        return found, None, None, None, None, None


def vector_jacobian(
    perturbed: Tensor, mask: Tensor, gradient: Tensor, k: int, temperature: float, order: Order
) -> Tensor:
    """1/T sum_t S_tj (g_j - sum_i S_ti g_i) for all j, with S_t the t-th softmax of perturbed / T.

    Args:
        perturbed: logits + c noise, [R, n].
        mask: its k largest, bool [R, n].
        gradient: g of a loss by the mask, [R, n]; overwritten.
        k: ones per row.
        temperature: T.
        order: see `sample`.

    Returns:
        [R, n], in the memory of `gradient`.
    """
    gradient = gradient.to(perturbed.dtype)
    low, high = torch.aminmax(perturbed)
    if float(high - low) >= kernels.SAFE_SPREAD * temperature:
        with torch.enable_grad():
            leaf = perturbed.detach().requires_grad_()
            soft = relaxed(leaf / temperature, mask, k, order)
            return torch.autograd.grad(soft, leaf, gradient)[0]
    if perturbed.device.type == "cpu" and perturbed.dtype == torch.float32 and kernels.available():
        kernels.product_(perturbed, mask, gradient, temperature, by_draw=order == "draw")
        return gradient
    # Rows in blocks: what is computed in between stays in the cache, and takes little memory.
    rows = max(1, BLOCK // perturbed.shape[1])
    for z, drawn, g in zip(perturbed.split(rows), mask.split(rows), gradient.split(rows), strict=True):
        _product_(z, drawn, g, k, temperature, order)
    return gradient


def _product_(perturbed: Tensor, mask: Tensor, gradient: Tensor, k: int, temperature: float, order: Order) -> None:
    """Overwrite `gradient` by the product; relative to the smallest drawn, or the row's largest."""
    z = perturbed / temperature
    index = _in_order(z, mask, k, order)
    at, own = z.gather(1, index), gradient.gather(1, index).double()
    top, limit = at.amax(1, keepdim=True), at.amin(1, keepdim=True)
    drawn = (at - top).double().exp_()
    # What was not drawn is below what was: relative to the row's largest, fp32 would lose it.
    rest = z.sub_(limit).clamp_(max=0).exp_().scatter_(1, index, 0.0)
    unit = (limit - top).double().exp_()
    left = unit * rest.sum(1, keepdim=True)
    left_gradient = unit * torch.einsum("rn,rn->r", rest, gradient)[:, None]
    d = _reversed_cumsum(drawn).add_(left)
    mean = _reversed_cumsum(drawn * own).add_(left_gradient).div_(d)
    a, b = d.reciprocal().cumsum(1), (mean / d).cumsum(1)
    slope, offset = (unit * a[:, -1:]).to(z.dtype), (unit * b[:, -1:]).to(z.dtype)
    gradient.mul_(slope).sub_(offset).mul_(rest)
    gradient.scatter_(1, index, own.mul_(a).sub_(b).mul_(drawn).to(z.dtype)).div_(temperature)


def _in_order(z: Tensor, mask: Tensor, k: int, order: Order) -> Tensor:
    """Indices of the drawn, [R, k], in the order in which the relaxation takes them out."""
    index = mask.nonzero()[:, 1].view(len(z), k)
    if order == "index":
        return index
    return index.gather(1, z.detach().gather(1, index).argsort(dim=1, descending=True, stable=True))


def _reversed_cumsum(values: Tensor) -> Tensor:
    return values.flip(1).cumsum_(1).flip(1)
