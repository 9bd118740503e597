"""Random networks as programs: a list of steps, each reading values made before it. Everything drawn runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

TOKENS, SIDE = 5, 4


@dataclass(frozen=True)
class Step:
    """One operation with four numbers that choose its operands and sizes, taken modulo what there is."""

    name: str
    a: int
    b: int
    c: int
    d: int


def programs(names: tuple[str, ...], most: int) -> st.SearchStrategy[list[Step]]:
    small = st.integers(0, 11)
    return st.lists(st.builds(Step, st.sampled_from(names), small, small, small, small), min_size=2, max_size=most)


class RandomNet(nn.Module):
    """Runs a program over values [B, ..., C] (tokens) or [B, C, H, W] (images); the channel dimension is `dim`."""

    def __init__(self, program: list[Step], dim: int, make: dict[str, Callable[..., Any]], stem: nn.Module) -> None:
        super().__init__()
        self.dim, self.stem, self.steps = dim, stem, nn.ModuleList()
        self.plan: list[tuple[Callable[..., Any], tuple[int, ...]]] = []
        widths = [8]
        for step in program:
            operands = [step.a % len(widths), step.b % len(widths)]
            built = make[step.name](self, step, [widths[i] for i in operands])
            if built is None:
                continue
            function, used, made = built
            self.plan.append((function, tuple(operands[:used])))
            widths += made
        self.head = nn.Linear(widths[-1], 3)
        self.widths = widths

    def add(self, module: nn.Module) -> nn.Module:
        self.steps.append(module)
        return module

    def forward(self, x: Tensor) -> Tensor:
        values = [self.stem(x)]
        for function, operands in self.plan:
            result = function(*(values[i] for i in operands))
            values += list(result) if isinstance(result, tuple | list) else [result]
        last = values[-1]
        return self.head(last.mean((2, 3)) if self.dim == 1 else last.mean(1))


def _divisor(number: int, choice: int) -> int:
    divisors = [d for d in range(2, number) if number % d == 0]
    return divisors[choice % len(divisors)] if divisors else 0


def activation(net: RandomNet, step: Step, widths: list[int]) -> Any:
    function = (F.relu, F.gelu, torch.sigmoid, F.silu, torch.tanh, F.softplus)[step.c % 6]
    return (lambda x: function(x)), 1, [widths[0]]


def add(net: RandomNet, step: Step, widths: list[int]) -> Any:
    return ((lambda x, y: x + y), 2, [widths[0]]) if widths[0] == widths[1] else None


def multiply(net: RandomNet, step: Step, widths: list[int]) -> Any:
    return ((lambda x, y: x * torch.sigmoid(y)), 2, [widths[0]]) if widths[0] == widths[1] else None


def concat(net: RandomNet, step: Step, widths: list[int]) -> Any:
    return (lambda x, y: torch.cat([x, y], net.dim)), 2, [sum(widths)]


def chunk(net: RandomNet, step: Step, widths: list[int]) -> Any:
    if widths[0] % 2:
        return None
    return (lambda x: x.chunk(2, net.dim)), 1, [widths[0] // 2] * 2


def split(net: RandomNet, step: Step, widths: list[int]) -> Any:
    if widths[0] < 2:
        return None
    first = 1 + step.c % (widths[0] - 1)
    return (lambda x: x.split([first, widths[0] - first], net.dim)), 1, [first, widths[0] - first]


def cut(net: RandomNet, step: Step, widths: list[int]) -> Any:
    if widths[0] < 3:
        return None
    start, length = step.c % (widths[0] - 1), 2 + step.d % 4
    kept = min(length, widths[0] - start)
    return (lambda x: x.narrow(net.dim, start, kept)), 1, [kept]


def shuffle(net: RandomNet, step: Step, widths: list[int]) -> Any:
    groups = _divisor(widths[0], step.c)
    if not groups:
        return None

    def run(x: Tensor) -> Tensor:
        shape = list(x.shape)
        at = net.dim % x.dim()
        grid = x.reshape(*shape[:at], groups, widths[0] // groups, *shape[at + 1 :])
        return grid.transpose(at, at + 1).reshape(shape)

    return run, 1, [widths[0]]


class Scale(nn.Module):
    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight.view(-1, 1, 1) if self.dim == 1 else self.weight)


def scale(net: RandomNet, step: Step, widths: list[int]) -> Any:
    return net.add(Scale(widths[0], net.dim)), 1, [widths[0]]


def linear(net: RandomNet, step: Step, widths: list[int]) -> Any:
    out = 4 + 2 * (step.c % 5)
    return net.add(nn.Linear(widths[0], out, bias=bool(step.d % 3))), 1, [out]


def norm(net: RandomNet, step: Step, widths: list[int]) -> Any:
    return net.add(nn.LayerNorm(widths[0])), 1, [widths[0]]


def mix_tokens(net: RandomNet, step: Step, widths: list[int]) -> Any:
    layer = net.add(nn.Linear(TOKENS, TOKENS))
    return (lambda x: layer(x.transpose(1, 2)).transpose(1, 2)), 1, [widths[0]]


def attention(net: RandomNet, step: Step, widths: list[int]) -> Any:
    heads, size = 2 + step.c % 3, 2 + step.d % 3
    q, k, v = (net.add(nn.Linear(widths[0], heads * size)) for _ in range(3))

    def run(x: Tensor) -> Tensor:
        b, n = x.shape[:2]
        parts = [layer(x).view(b, n, heads, size).transpose(1, 2) for layer in (q, k, v)]
        if step.b % 2:
            mixed = ((parts[0] @ parts[1].transpose(-2, -1)) * size**-0.5).softmax(-1) @ parts[2]
        else:
            mixed = F.scaled_dot_product_attention(*parts)
        return mixed.transpose(1, 2).reshape(b, n, heads * size)

    return run, 1, [heads * size]


def fused_attention(net: RandomNet, step: Step, widths: list[int]) -> Any:
    heads, size = 2 + step.c % 3, 2 + step.d % 3
    qkv = net.add(nn.Linear(widths[0], 3 * heads * size))

    def run(x: Tensor) -> Tensor:
        b, n = x.shape[:2]
        q, k, v = qkv(x).reshape(b, n, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, heads * size)

    return run, 1, [heads * size]


def shared(net: RandomNet, step: Step, widths: list[int]) -> Any:
    layer = net.add(nn.Linear(widths[0], widths[0]))
    return (lambda x: layer(F.relu(layer(x)))), 1, [widths[0]]


def convolution(net: RandomNet, step: Step, widths: list[int]) -> Any:
    out = 4 + 2 * (step.c % 5)
    return net.add(nn.Conv2d(widths[0], out, 1 + 2 * (step.d % 2), padding=step.d % 2)), 1, [out]


def depthwise(net: RandomNet, step: Step, widths: list[int]) -> Any:
    return net.add(nn.Conv2d(widths[0], widths[0], 3, padding=1, groups=widths[0])), 1, [widths[0]]


def grouped(net: RandomNet, step: Step, widths: list[int]) -> Any:
    groups = _divisor(widths[0], step.c)
    return (net.add(nn.Conv2d(widths[0], 2 * groups, 1, groups=groups)), 1, [2 * groups]) if groups else None


def batch_norm(net: RandomNet, step: Step, widths: list[int]) -> Any:
    return net.add(nn.BatchNorm2d(widths[0])), 1, [widths[0]]


def group_norm(net: RandomNet, step: Step, widths: list[int]) -> Any:
    return net.add(nn.GroupNorm(_divisor(widths[0], step.c) or 1, widths[0])), 1, [widths[0]]


def squeeze_excite(net: RandomNet, step: Step, widths: list[int]) -> Any:
    down, up = net.add(nn.Conv2d(widths[0], 4, 1)), net.add(nn.Conv2d(4, widths[0], 1))
    return (lambda x: x * up(F.relu(down(x.mean((2, 3), keepdim=True)))).sigmoid()), 1, [widths[0]]


def transposed(net: RandomNet, step: Step, widths: list[int]) -> Any:
    out = 4 + 2 * (step.c % 3)
    return net.add(nn.ConvTranspose2d(widths[0], out, 3, padding=1)), 1, [out]


def positions_attend(net: RandomNet, step: Step, widths: list[int]) -> Any:
    heads, size = 2 + step.c % 2, 2 + step.d % 2
    q, k, v = (net.add(nn.Conv2d(widths[0], heads * size, 1)) for _ in range(3))

    def run(x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        parts = [layer(x).reshape(b, heads, size, h * w).transpose(2, 3) for layer in (q, k, v)]
        return F.scaled_dot_product_attention(*parts).transpose(2, 3).reshape(b, heads * size, h, w)

    return run, 1, [heads * size]


COMMON = {
    "activation": activation, "add": add, "multiply": multiply, "concat": concat, "chunk": chunk, "split": split,
    "cut": cut, "shuffle": shuffle, "scale": scale,
}  # fmt: skip
ON_TOKENS = {
    **COMMON, "linear": linear, "linear again": linear, "norm": norm, "mix_tokens": mix_tokens, "attention": attention,
    "fused_attention": fused_attention, "shared": shared,
}  # fmt: skip
ON_IMAGES = {
    **COMMON, "convolution": convolution, "convolution again": convolution, "depthwise": depthwise, "grouped": grouped,
    "batch_norm": batch_norm, "group_norm": group_norm, "squeeze_excite": squeeze_excite, "transposed": transposed,
    "positions_attend": positions_attend,
}  # fmt: skip


def token_net(program: list[Step]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return RandomNet(program, -1, ON_TOKENS, nn.Linear(6, 8)), torch.randn(2, TOKENS, 6)


def image_net(program: list[Step]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return RandomNet(program, 1, ON_IMAGES, nn.Conv2d(3, 8, 3, padding=1)), torch.randn(2, 3, SIDE, SIDE)
