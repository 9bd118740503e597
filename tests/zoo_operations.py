"""One operation each between a layer that writes units and one that reads them: what may go, and what must stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import Animal, Inputs, image, noise
from zoo_attention import GroupedQueries, join, split
from zoo_nets import Net, cbr, head

Function = Callable[[Tensor], Tensor]


def on_images(function: Function, read: int = 8, stays: str = "") -> Animal:
    """A stem of 8 channels, the operation, a reader of `read` channels; `stays`: part of why the stem does."""

    def made() -> nn.Module:
        children = {"stem": cbr(3, 8), "mid": cbr(read, 6), "head": head(6)}
        return Net(lambda m, x: m.head(m.mid(function(m.stem(x)))), **children)

    free = ("mid.0",) if stays else ("stem.0", "mid.0")
    return Animal(made, image(), free, (("stem.0", stays),) if stays else (), None, None)


def on_tokens(function: Function, read: int = 12, stays: str = "") -> Animal:
    """The same for sequences of 5 vectors with 12 units."""

    def made() -> nn.Module:
        return Net(
            lambda m, x: m.head(m.mid(function(m.stem(x))).relu().mean(1)),
            stem=nn.Linear(6, 12), mid=nn.Linear(read, 8), head=nn.Linear(8, 3),
        )  # fmt: skip

    free = ("mid",) if stays else ("stem", "mid")
    return Animal(made, noise(5, 6), free, (("stem", stays),) if stays else (), None, None)


def written_over(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :4] = 2 * x[:, 4:]
    y[:, :, 0] = 0
    y[..., 1:3] = x[..., 3:5]
    return y


def put(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, [0, 1]] = y[:, [2, 3]]
    return y


def changed_index(x: Tensor) -> Tensor:
    index = torch.arange(3)
    index[:2] = index[:2] + 4
    return x[..., index]


def complex_turn(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.complex(torch.tensor(0.6), torch.tensor(0.8))).flatten(-2)


CHANNELWISE: dict[str, Animal] = {
    "unpool": on_images(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
    "maxout_of_a_stack": on_images(lambda x: torch.stack((x, -x), 4).max(4)[0]),
    "maxout_inside_rows": on_images(lambda x: x.view(-1, 4, 2, 8, 8).max(2)[0], 4),
    "sum_of_rows": on_images(lambda x: x.view(-1, 2, 4, 8, 8).sum(1), 4),
    "gather_positions": on_images(lambda x: x.flatten(2).gather(2, x.flatten(2).argsort(2)).view_as(x)),
    "take_along_positions": on_images(lambda x: x.flatten(2).take_along_dim(x.flatten(2).argsort(2), 2).view_as(x)),
    "rolled": on_images(lambda x: x.roll(3, 1)),
    "cropped_space": on_images(lambda x: F.pad(x, (-1, -1, -2, 1))),
    "windows": on_images(lambda x: F.unfold(x, 2, stride=2).view(x.shape[0], -1, 4, 4), 32),
    "windows_and_back": on_images(lambda x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1)),
    "sliding_windows": on_images(lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))),
    "written_over": on_images(written_over),
    "slice_scatter": on_images(lambda x: torch.slice_scatter(x, 2 * x[:, :4], 1, 0, 4)),
    "select_scatter": on_images(lambda x: torch.select_scatter(x, 2 * x[:, :, 0], 2, 0)),
    "repeated_channels": on_images(lambda x: x.repeat(1, 2, 1, 1), 16),
    "interleaved_channels": on_images(lambda x: x.repeat_interleave(2, 1), 16),
    "scatter_add_tokens": on_tokens(
        lambda x: torch.zeros_like(x).scatter_add(1, torch.tensor([4, 3, 2, 1, 0])[None, :, None].expand_as(x), x)
    ),
    "gather_tokens": on_tokens(
        lambda x: x.gather(1, torch.tensor([[0, 2, 4]]).unsqueeze(-1).expand(x.shape[0], 3, x.shape[2]))
    ),
    "index_add_tokens": on_tokens(lambda x: torch.zeros_like(x).index_add(1, torch.tensor([4, 3, 2, 1, 1]), x)),
    "index_copy_tokens": on_tokens(lambda x: torch.zeros_like(x).index_copy(1, torch.tensor([4, 3, 2, 1, 0]), x)),
    "index_put_tokens": on_tokens(put),
    "index_fill_tokens": on_tokens(lambda x: x.index_fill(1, torch.tensor([1, 2]), 0.0)),
    "index_select_tokens": on_tokens(lambda x: x.index_select(1, torch.tensor([0, 3]))),
    "selected_by_a_list": on_images(lambda x: x[:, [7, 0, 3, 4, 1, 6, 5, 2]]),
    "selected_from_the_end": on_images(lambda x: x[:, [-1, -2, 0]], 3),
    "selected_twice_and_never": on_images(lambda x: x[:, torch.tensor([1, 1, 5, 0, 5, 2])], 6),
    "selected_and_added": on_images(lambda x: x + x[:, [1, 0, 3, 2, 5, 4, 7, 6]]),
    "selected_by_a_computed_index": on_images(lambda x: x[:, torch.arange(8).view(2, 4).t().reshape(-1)]),
    "index_select_units": on_tokens(lambda x: x.index_select(-1, torch.tensor([11, 2, 3, 3, 0])), 5),
    "fourier_over_tokens": on_tokens(lambda x: torch.fft.rfft(x, dim=1).abs()),
    "complex_pairs": on_tokens(complex_turn),
}
"""Each output unit moves with its own input unit alone."""

NORMS: dict[str, Animal] = {
    "normalize": on_images(lambda x: F.normalize(x, dim=1)),
    "root_of_squares": on_images(lambda x: x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-5)),
    "norm_method": on_images(lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-5)),
    "vector_norm": on_images(lambda x: x / (torch.linalg.vector_norm(x, dim=1).unsqueeze(1) + 1e-5)),
    "rsqrt_of_product": on_images(lambda x: x * torch.rsqrt((x * x).sum(1, keepdim=True) + 1e-5)),
    "einsum_with_itself": on_images(lambda x: x * torch.rsqrt(torch.einsum("bchw,bchw->bhw", x, x)[:, None] + 1e-5)),
    "l1": on_images(lambda x: F.normalize(x, p=1, dim=1)),
    "expanded": on_images(lambda x: x / x.square().sum(1, keepdim=True).sqrt().clamp_min(1e-5).expand(-1, 8, -1, -1)),
    "repeated": on_images(lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-5).repeat(1, 8, 1, 1)),
    "root_mean_square": on_images(lambda x: F.normalize(x, dim=1) * 8**0.5),
    "over_the_whole_example": on_tokens(lambda x: x / x.norm(dim=(1, 2), keepdim=True)),
    "of_a_mean": on_images(lambda x: x / (x.mean((2, 3), keepdim=True).norm(dim=1, keepdim=True) + 1e-5)),
    "sum_as_gate": on_tokens(lambda x: x * torch.sigmoid(x.sum(-1, keepdim=True))),
    "cosine": on_tokens(lambda x: x * F.cosine_similarity(x, x.flip(1), dim=-1).unsqueeze(-1)),
    "distances": on_tokens(lambda x: torch.cdist(x, x).softmax(-1) @ x),
}
"""Sums and norms over units: removal is masking if the mask stands before them."""

MEANS: dict[str, Animal] = {
    "mean_subtracted": on_tokens(lambda x: x - x.mean(-1, keepdim=True)),
    "mean_of_squares": on_tokens(lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)),
    "no_zero_before_the_norm": on_tokens(lambda x: F.normalize(torch.sigmoid(x), dim=-1)),
    "global_response_norm": on_images(
        lambda x: x + x * (n := x.norm(dim=(2, 3), keepdim=True)) / (n.mean(1, keepdim=True) + 1e-5)
    ),
    "mean_over_space_and_units": on_images(lambda x: x - x.mean((1, 2, 3), keepdim=True)),
}
"""Removal differs from masking: only when asked."""

STAYS: dict[str, Animal] = {
    "softmax": on_images(lambda x: x.softmax(1), stays="softmax"),
    "cumsum": on_images(lambda x: x.cumsum(1), stays="cumsum"),
    "logsumexp": on_images(lambda x: x - x.logsumexp(1, keepdim=True), stays="logsumexp"),
    "sort": on_tokens(lambda x: x.sort(-1)[0], stays="sort"),
    "topk": on_tokens(lambda x: x.topk(4, -1)[0], 4, stays="topk"),
    "local_response_norm": on_images(lambda x: F.local_response_norm(x, 3), stays="over units"),
    "fourier_over_units": on_tokens(lambda x: torch.fft.rfft(x, dim=-1).abs(), 7, stays="mixes the units"),
    "gather_units": on_tokens(lambda x: x.gather(-1, torch.tensor([[[3, 1, 4]]]).expand(*x.shape[:2], 3)), 3, "index"),
    "selected_by_a_changed_index": on_tokens(changed_index, 3, stays="index"),
    "selected_by_a_mask": on_tokens(lambda x: x[..., torch.arange(12) != 3].sum(-1, keepdim=True), 1, stays="index"),
    "smallest_norm": on_tokens(lambda x: x / (x.norm(p=-1, dim=-1, keepdim=True) + 1), stays="over the units"),
    "rolled_flat": on_tokens(lambda x: x.roll(3), stays="rolled"),
}


def _concatenated(a: int, b: int, layer: Callable[[], nn.Module], read: int) -> Animal:
    """Two maps side by side under a layer with groups: as many units must stay in each group."""

    def made() -> nn.Module:
        children = {"stem": cbr(3, 8), "a": cbr(8, a), "b": cbr(8, b), "layer": layer(), "mid": cbr(read, 6)}
        return Net(lambda m, x: m.head(m.mid(m.layer(torch.cat([m.a(y := m.stem(x)), m.b(y)], 1)))), **children,
                   head=head(6))  # fmt: skip

    return Animal(made, image(), ("stem.0", "a.0", "mid.0"), (), None, None)


COUNTS: dict[str, Animal] = {
    "a_group_each": _concatenated(6, 6, lambda: nn.Conv2d(12, 8, 3, padding=1, groups=2), 8),
    "groups_across": _concatenated(4, 8, lambda: nn.Conv2d(12, 9, 1, groups=3), 9),
    "uneven": _concatenated(3, 9, lambda: nn.Conv2d(12, 8, 1, groups=2), 8),
}
"""Groups of a layer over several maps: units at one place of all groups go together."""
MEANS["groups_over_two_maps"] = Animal(
    _concatenated(4, 8, lambda: nn.GroupNorm(3, 12), 12).factory, image(), ("a.0", "mid.0"), (), None, None
)


def _whole_groups() -> nn.Module:
    children = {"stem": cbr(3, 8), "layer": nn.Conv2d(16, 8, 1, groups=8), "mid": cbr(8, 6), "head": head(6)}
    return Net(lambda m, x: m.head(m.mid(m.layer(m.stem(x).repeat_interleave(2, 1)))), **children)


STAYS["whole_groups"] = Animal(_whole_groups, image(), ("mid.0",), (("stem.0", "whole row"),), None, None)


class RepeatedKeys(GroupedQueries):
    """Keys and values repeated by one operation."""

    def __init__(self, repeat: Function) -> None:
        super().__init__()
        self.repeat = repeat

    def attend(self, x: Tensor) -> Tensor:
        q = split(self.q(x), self.num_heads)
        k, v = (self.repeat(split(layer(x), self.num_heads // 2)) for layer in (self.k, self.v))
        return join(F.scaled_dot_product_attention(q, k, v, scale=0.5))


class CosineHeads(GroupedQueries):
    """Queries and keys of length one in every head, as Swin V2 has them."""

    def attend(self, x: Tensor) -> Tensor:
        q = split(self.q(x), self.num_heads)
        k, v = (split(layer(x), self.num_heads // 2).repeat_interleave(2, 1) for layer in (self.k, self.v))
        scores = 3.0 * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return join(scores.softmax(-1) @ v)


def _heads(make: Callable[[], nn.Module]) -> Animal:
    tokens: Inputs = noise(5, 6)
    return Animal(make, tokens, ("q", "q.heads", "v", "up"), (), None, None)


HEADS: dict[str, Animal] = {
    "repeat_interleave": _heads(lambda: RepeatedKeys(lambda t: t.repeat_interleave(2, 1))),
    "repeat": _heads(lambda: RepeatedKeys(lambda t: t.repeat(1, 2, 1, 1))),
    "tile": _heads(lambda: RepeatedKeys(lambda t: t.tile(1, 2, 1, 1))),
    "stack": _heads(lambda: RepeatedKeys(lambda t: torch.stack([t, t], 2).flatten(1, 2))),
    "cosine": _heads(CosineHeads),
}

OPERATIONS: dict[str, Any] = {
    f"{kind}_{name}": animal
    for kind, animals in (("channelwise", CHANNELWISE), ("norm", NORMS), ("mean", MEANS), ("stays", STAYS),
                          ("counts", COUNTS), ("heads", HEADS))
    for name, animal in animals.items()
}  # fmt: skip
