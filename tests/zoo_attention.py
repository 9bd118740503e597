"""Attention, written in all the ways people write it: whole heads must come out as units, and nothing else break."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, SIZE = 16, 4, 4


def split(x: Tensor, heads: int = HEADS) -> Tensor:
    """[B, N, H D] -> [B, H, N, D]."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def join(x: Tensor) -> Tensor:
    """[B, H, N, D] -> [B, N, H D]."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


class Block(nn.Module):
    """Pre-norm attention and a feed-forward net on a residual stream; subclasses compute `attend`."""

    def __init__(self, kv: int = WIDTH) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(6, WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, kv), nn.Linear(WIDTH, kv)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.num_heads = HEADS

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (split(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        return join(((q @ k.transpose(-2, -1)) * SIZE**-0.5).softmax(-1) @ v)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.out(self.attend(self.norm(x)))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


class HardCodedHeads(Block):
    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(-1, x.shape[1], 4, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, x.shape[1], 16)


class WidthInCode(Block):
    """Takes as many heads of one width as there is room for."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], -1, SIZE).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2)


class Fused(Block):
    """One layer for queries, keys and values, taken apart by reshape, as ViTs do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        del self.q, self.k, self.v

    def attend(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return join(F.scaled_dot_product_attention(q, k, v))


class FusedChunks(Fused):
    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (split(part, self.num_heads) for part in self.qkv(x).chunk(3, -1))
        return join(F.scaled_dot_product_attention(q, k, v))


class FusedByHead(Fused):
    """Queries, keys and values side by side inside each head, as GPT-NeoX does."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = split(self.qkv(x), self.num_heads).chunk(3, -1)
        return join(F.scaled_dot_product_attention(q, k, v))


class HeadsLast(Fused):
    """What the heads make is laid out with the head as the fastest dimension, and sizes are hard-coded, as in Nest."""

    def attend(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).permute(0, 2, 3, 1).reshape(b, n, WIDTH)


def rotated(x: Tensor, frequencies: Tensor) -> Tensor:
    angles = torch.outer(torch.arange(x.shape[2]).float(), frequencies)
    cos, sin = (torch.cat([f, f], -1) for f in (angles.cos(), angles.sin()))
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class GroupedQueries(Block):
    """Two key heads for four query heads, rotary positions, keys repeated."""

    def __init__(self) -> None:
        super().__init__(kv=2 * SIZE)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1]))

    def attend(self, x: Tensor) -> Tensor:
        q = split(self.q(x), self.num_heads)
        k, v = (split(layer(x), self.num_heads // 2) for layer in (self.k, self.v))
        q, k = rotated(q, self.frequencies), rotated(k, self.frequencies)
        k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).reshape(q.shape) for t in (k, v))
        return join(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class InterleavedRotary(GroupedQueries):
    """Rotary positions that turn neighbours (0, 1), (2, 3), ... instead of halves, as GPT-J and Cohere do."""

    def attend(self, x: Tensor) -> Tensor:
        q = split(self.q(x), self.num_heads)
        k, v = (split(layer(x), self.num_heads // 2) for layer in (self.k, self.v))
        q, k = self.turned(q), self.turned(k)
        k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).reshape(*q.shape[:-1], -1) for t in (k, v))
        return join(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5))

    def turned(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[2]).float(), self.frequencies.repeat_interleave(2))
        other = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return x * angles.cos() + other * angles.sin()


class GroupedByKernel(GroupedQueries):
    def attend(self, x: Tensor) -> Tensor:
        q = split(self.q(x), self.num_heads)
        k, v = (split(layer(x), self.num_heads // 2) for layer in (self.k, self.v))
        return join(F.scaled_dot_product_attention(q, k, v, enable_gqa=True))


class OneKeyHead(Block):
    """One key head for all query heads."""

    def __init__(self) -> None:
        super().__init__(kv=SIZE)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = split(self.q(x), self.num_heads), self.k(x)[:, None], self.v(x)[:, None]
        return join(((q @ k.transpose(-2, -1)) * SIZE**-0.5).softmax(-1) @ v)


class OneKeyHeadExpanded(OneKeyHead):
    def attend(self, x: Tensor) -> Tensor:
        q = split(self.q(x), 4)
        k, v = (layer(x)[:, None].expand(-1, 4, -1, -1) for layer in (self.k, self.v))
        return join(F.scaled_dot_product_attention(q, k, v))


class Projection(nn.Module):
    """x W with the weight stored as [inputs, outputs], as GPT-2 has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.3 * torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], self.weight.shape[1])


class TransposedWeights(FusedChunks):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = Projection(WIDTH, 3 * WIDTH), Projection(WIDTH, WIDTH)  # type: ignore[assignment]


class WrittenOut(Block):
    """x W^T written out, and `einsum` for the attention."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (
            (x @ layer.weight.t()).view(x.shape[0], x.shape[1], self.num_heads, -1)
            for layer in (self.q, self.k, self.v)
        )
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
        return torch.einsum("bhnm,bmhd->bnhd", scores, v).flatten(2)


class RelativeTable(Block):
    """A learned bias per head and distance, looked up by index, and a learned scale per head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, HEADS))
        self.scale = nn.Parameter(torch.rand(HEADS, 1, 1))
        self.register_buffer("distance", torch.arange(5)[:, None] - torch.arange(5)[None] + 4)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (split(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        bias = self.table[self.distance.view(-1)].view(5, 5, -1).permute(2, 0, 1)
        return join(((q @ k.transpose(-2, -1)) * self.scale + bias.unsqueeze(0)).softmax(-1) @ v)


class BiasTable(Block):
    """A table of biases per head and distance, filled up with a number where nobody looks, as T5 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, HEADS)

    def bias(self, size: int) -> Tensor:
        steps = torch.arange(size)
        return self.table(steps[:, None] - steps[None] + 4).permute(2, 0, 1).unsqueeze(0)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (split(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        seen = torch.ones(x.shape[1], x.shape[1]).tril() > 0
        bias = torch.where(seen, self.bias(x.shape[1]), -1e4)
        return join(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.5))


class EmptyBias(BiasTable):
    """No bias is a tensor of zeros, with a place for every head that the module knows of."""

    def bias(self, size: int) -> Tensor:
        return torch.zeros(1, self.num_heads, size, size)


class EmptyBiasInCode(BiasTable):
    """The same with the number of heads in the code."""

    def bias(self, size: int) -> Tensor:
        return self.table.weight.new_zeros((1, 4, size, size))


class WrittenBias(BiasTable):
    """Zeros that are written over for some of the heads: no longer the same everywhere."""

    def bias(self, size: int) -> Tensor:
        bias = torch.zeros(1, self.num_heads, size, size)
        bias[:, 2:, :, 0] = 3.0
        return bias


class NormalisedKeys(Block):
    """Root-mean-square norms inside each head, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(SIZE))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (split(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        q, k = (self.gain * t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6) for t in (q, k))
        return join(F.scaled_dot_product_attention(q, k, v))


class SlopesInCode(Block):
    """A bias per head that is computed, not stored: the heads must stay."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (split(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625]).view(1, 4, 1, 1) * torch.arange(5.0)
        return join(((q @ k.transpose(-2, -1)) + slopes).softmax(-1) @ v)


class GatedHeads(Block):
    """The joined heads meet a gate of the same width, a bias and a norm before they are projected."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.shift = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.randn(WIDTH))

    def attend(self, x: Tensor) -> Tensor:
        return super().attend(x) * self.gate(x).sigmoid() + self.shift * self.gate(x)


class SharedLayers(Block):
    """The same attention twice, as ALBERT does."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = x + self.out(self.attend(self.norm(x)))
        return self.head(x.mean(1))


class ConvolutionalHeads(nn.Module):
    """Attention over positions of an image: 1 x 1 convolutions, a depthwise one on the values, channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 48, 1)
        self.local, self.out = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1)
        self.num_heads = HEADS

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        b, _, h, w = x.shape
        q, k, v = self.qkv(x).chunk(3, 1)
        queries, keys, values = (t.reshape(b, self.num_heads, -1, h * w) for t in (q, k, v))
        scores = torch.einsum("bhcn,bhcm->bhnm", queries, keys).softmax(-1)
        mixed = torch.einsum("bhnm,bhcm->bhcn", scores, values).reshape(b, -1, h, w)
        return self.out(mixed + self.local(v)).mean((2, 3))


class CrossAttention(Block):
    """Queries from one input, keys and values from another."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.Linear(5, WIDTH)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        x, memory = self.stem(x), self.memory(other)
        q, k, v = (
            split(self.q(x), self.num_heads),
            split(self.k(memory), self.num_heads),
            split(self.v(memory), self.num_heads),
        )
        return self.head((x + self.out(join(F.scaled_dot_product_attention(q, k, v)))).mean(1))


class AveragedScores(Block):
    """The mean of the scores over the heads is an output: no head may go."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = self.stem(x)
        q, k, v = (split(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.head((x + self.out(join(scores @ v))).mean(1)), scores.mean(1)


class LinearAttention(Block):
    """Keys and values are multiplied first: no softmax between them."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (split(layer(x), self.num_heads) for layer in (self.q, self.k, self.v))
        return join(q.softmax(-1) @ (k.softmax(2).transpose(-2, -1) @ v))


class GramAttention(nn.Module):
    """A stream attends to itself without layers of its own: what the head reads is summed over elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.head = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mixed = (x @ x.transpose(1, 2)).softmax(-1) @ x
        return self.head(F.gelu(self.up(mixed)).mean(1))
