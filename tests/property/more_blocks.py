"""Further steps of random networks: norms of all spellings, look-ups, windows, weights that are computed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-3


def length_norm(net: Any, step: Any, widths: list[int]) -> Any:
    """Length one over the units, in six spellings, or a gate made of their sum."""
    dim = net.dim

    def spread(x: Tensor) -> Tensor:
        return x / (x.square().sum(dim, keepdim=True).sqrt() + EPS).expand_as(x)

    spellings = (
        lambda x: F.normalize(x, dim=dim, eps=EPS),
        lambda x: x / (x.pow(2).sum(dim, keepdim=True).sqrt() + EPS),
        lambda x: x / (x.norm(dim=dim, keepdim=True) + EPS),
        lambda x: x / (torch.linalg.vector_norm(x, dim=dim).unsqueeze(dim) + EPS),
        spread,
        lambda x: x * torch.rsqrt((x * x).sum(dim, keepdim=True) + EPS),
        lambda x: F.normalize(x, p=1.0, dim=dim, eps=EPS),
        lambda x: x * torch.sigmoid(x.sum(dim, keepdim=True)),
        lambda x: x * F.cosine_similarity(x, x.flip(0), dim=dim, eps=EPS).unsqueeze(dim),
    )
    return spellings[step.c % len(spellings)], 1, [widths[0]]


def mean_norm(net: Any, step: Any, widths: list[int]) -> Any:
    """What removal changes: means and variances over units."""
    dim = net.dim
    spellings = (
        lambda x: x - x.mean(dim, keepdim=True),
        lambda x: x * torch.rsqrt(x.pow(2).mean(dim, keepdim=True) + EPS),
        lambda x: x / (x.std(dim, keepdim=True) + 1.0),
        lambda x: x * torch.sigmoid(x.amax(dim, keepdim=True)),
    )
    return spellings[step.c % len(spellings)], 1, [widths[0]]


def moved_units(net: Any, step: Any, widths: list[int]) -> Any:
    """Rolled, turned round, repeated, permuted, chosen."""
    width, dim = widths[0], net.dim
    if width < 3:
        return None
    order = torch.randperm(width)
    twice = [1, 2, 1, 1] if dim == 1 else [1, 1, 2]
    choices: tuple[tuple[Any, int], ...] = (
        (lambda x: x.roll(1 + step.d % (width - 1), dim), width),
        (lambda x: x.flip(dim), width),
        (lambda x: x.repeat(twice), 2 * width),
        (lambda x: x.repeat_interleave(2, dim), 2 * width),
        (lambda x: x.index_select(dim, order), width),
        (lambda x: torch.cat(x.tensor_split(2, dim)[::-1], dim), width),
        (lambda x: x.cumsum(dim), width),
        (lambda x: x.softmax(dim), width),
        (lambda x: x[:, ::2] if dim == 1 else x[..., ::2], -(-width // 2)),
    )
    function, out = choices[step.c % len(choices)]
    return (function, 1, [out]) if out <= 64 else None


def written_over(net: Any, step: Any, widths: list[int]) -> Any:
    """A part of the units is overwritten in place by others."""
    if widths[0] < 4:
        return None
    half = widths[0] // 2

    def run(x: Tensor) -> Tensor:
        y = x.clone()
        y.narrow(net.dim, 0, half).copy_(2 * x.narrow(net.dim, widths[0] - half, half))
        return y

    return run, 1, [widths[0]]


def rows_joined(net: Any, step: Any, widths: list[int]) -> Any:
    """Maximum or sum over one side of a reshape."""
    parts = [d for d in (2, 3, 4) if widths[0] % d == 0 and widths[0] > d]
    if not parts:
        return None
    rows = parts[step.c % len(parts)]

    def run(x: Tensor) -> Tensor:
        at = net.dim % x.dim()
        grid = x.unflatten(at, (rows, widths[0] // rows) if step.d % 2 else (widths[0] // rows, rows))
        over = at if step.d % 2 else at + 1
        return grid.amax(over) if step.b % 2 else grid.sum(over)

    return run, 1, [widths[0] // rows]


def computed_weight(net: Any, step: Any, widths: list[int]) -> Any:
    """A linear map over the units whose weight is no layer's, or comes out of an operation."""
    width, out = widths[0], 4 + 2 * (step.d % 4)
    holder = net.add(nn.Module())
    holder.weight, holder.scale = nn.Parameter(0.4 * torch.randn(out, width)), nn.Parameter(torch.rand(out, 1) + 0.5)
    holder.bias = nn.Parameter(torch.randn(out))
    weights = (
        lambda: holder.weight,
        lambda: holder.weight.to(torch.float64).to(holder.weight.dtype),
        lambda: holder.weight * holder.scale,
        lambda: holder.weight * 0.7,
        lambda: holder.weight.view(out, width, 1).squeeze(-1),
        lambda: holder.weight / (holder.weight.norm(dim=1, keepdim=True) + EPS),
        lambda: holder.weight[:, torch.arange(width)],
    )
    weight = weights[step.c % len(weights)]
    if net.dim == 1:
        return (lambda x: F.conv2d(x, weight()[:, :, None, None], holder.bias)), 1, [out]
    if step.b % 3 == 0:
        return (lambda x: x @ weight().t()), 1, [out]
    if step.b % 3 == 1:
        return (lambda x: torch.einsum("bnc,oc->bno", x, weight())), 1, [out]
    return (lambda x: F.linear(x, weight(), holder.bias)), 1, [out]


def looked_up_tokens(net: Any, step: Any, widths: list[int]) -> Any:
    """Tokens gathered, scattered, added, written by index."""
    order = torch.tensor([3, 0, 4, 1, 2])

    def wide(x: Tensor) -> Tensor:
        return order[None, :, None].expand(x.shape[0], -1, x.shape[2])

    def put(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, [0, 1]] = y[:, [2, 3]]
        return y

    choices = (
        lambda x: x.gather(1, wide(x)),
        lambda x: torch.zeros_like(x).scatter_add(1, wide(x), x),
        lambda x: x.scatter(1, wide(x), 2 * x),
        lambda x: torch.zeros_like(x).index_add(1, order, x),
        lambda x: x.index_copy(1, order, x),
        lambda x: x.take_along_dim(x.argsort(1), 1),
        lambda x: x.sort(1)[0],
        lambda x: x[:, order],
        lambda x: torch.fft.rfft(x, n=8, dim=1).abs(),
        put,
    )
    return choices[step.c % len(choices)], 1, [widths[0]]


def grouped_queries(net: Any, step: Any, widths: list[int]) -> Any:
    """Two key heads for four query heads, repeated in three ways; cosine scores in some."""
    size = 2 + step.d % 2
    q, k, v = net.add(nn.Linear(widths[0], 4 * size)), *(net.add(nn.Linear(widths[0], 2 * size)) for _ in range(2))
    repeats = (
        lambda t: t.repeat_interleave(2, 1),
        lambda t: t.repeat(1, 2, 1, 1),
        lambda t: t[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2),
    )
    repeat = repeats[step.c % 3]

    def run(x: Tensor) -> Tensor:
        b, n = x.shape[:2]
        queries = q(x).view(b, n, 4, size).transpose(1, 2)
        keys, values = (repeat(layer(x).view(b, n, 2, size).transpose(1, 2)) for layer in (k, v))
        if step.b % 2:
            queries, keys = F.normalize(queries, dim=-1, eps=EPS), F.normalize(keys, dim=-1, eps=EPS)
        mixed = F.scaled_dot_product_attention(queries, keys, values, scale=0.5)
        return mixed.transpose(1, 2).reshape(b, n, 4 * size)

    return run, 1, [4 * size]


def windows(net: Any, step: Any, widths: list[int]) -> Any:
    """Unpooling, windows and back, crops and shifts of positions."""

    def unpool(x: Tensor) -> Tensor:
        return F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)

    def overwrite(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, :, 0] = x[:, :, 1]
        return y

    choices = (
        unpool,
        lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1),
        lambda x: F.pad(F.pad(x, (-1, -1, -1, -1)), (1, 1, 1, 1)),
        lambda x: x.roll((1, 2), (2, 3)),
        lambda x: x.unfold(2, 3, 1).mean(-1).repeat(1, 1, 2, 1),
        lambda x: x.flatten(2).gather(2, x.flatten(2).argsort(2)).view_as(x),
        lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear"),
        overwrite,
    )
    return choices[step.c % len(choices)], 1, [widths[0]]


def cropped_channels(net: Any, step: Any, widths: list[int]) -> Any:
    """Channels cut off or added by padding."""
    if widths[0] < 5:
        return None
    before, after = step.c % 5 - 2, step.d % 5 - 2
    return (lambda x: F.pad(x, (0, 0, 0, 0, before, after))), 1, [widths[0] + before + after]


def grouped_transposed(net: Any, step: Any, widths: list[int]) -> Any:
    """Grouped and depthwise transposed convolutions."""
    divisors = [d for d in range(2, widths[0] + 1) if widths[0] % d == 0]
    if not divisors:
        return None
    groups = divisors[step.c % len(divisors)]
    out = groups * (1 + step.d % 2)
    return net.add(nn.ConvTranspose2d(widths[0], out, 3, padding=1, groups=groups)), 1, [out]


def parametrized(net: Any, step: Any, widths: list[int]) -> Any:
    """A layer whose weight is the product of a direction and a length."""
    out = 4 + 2 * (step.c % 4)
    layer = nn.Linear(widths[0], out) if net.dim == -1 else nn.Conv2d(widths[0], out, 1)
    if step.d % 2:
        return net.add(nn.utils.parametrizations.weight_norm(layer)), 1, [out]
    return net.add(nn.utils.parametrizations.spectral_norm(layer)), 1, [out]


def several_linear(net: Any, step: Any, widths: list[int]) -> Any:
    """A layer called by keyword, and heads taken apart from the end."""
    size = 2 + step.c % 3
    layer = net.add(nn.Linear(widths[0], 4 * size))

    def run(x: Tensor) -> Tensor:
        return layer(input=x).unflatten(-1, (4, size)).transpose(-1, -2).flatten(-2)

    return run, 1, [4 * size]


EVERYWHERE = {
    "length_norm": length_norm, "mean_norm": mean_norm, "moved_units": moved_units, "written_over": written_over,
    "rows_joined": rows_joined, "computed_weight": computed_weight, "parametrized": parametrized,
}  # fmt: skip
MORE_ON_TOKENS = {
    **EVERYWHERE, "looked_up_tokens": looked_up_tokens, "grouped_queries": grouped_queries,
    "several_linear": several_linear,
}  # fmt: skip
MORE_ON_IMAGES = {
    **EVERYWHERE, "windows": windows, "cropped_channels": cropped_channels, "grouped_transposed": grouped_transposed,
}  # fmt: skip
