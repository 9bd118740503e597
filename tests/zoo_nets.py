"""The zoo's networks whose forward pass needs a class of its own; `zoo.py` names them and says what must hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Named children and one function of the module and its input."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def cbr(inputs: int, outputs: int, kernel: int = 3, act: nn.Module | None = None, **options: Any) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), act or nn.ReLU())


def head(inputs: int, outputs: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs))


def seq(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


class HardCodedView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = cbr(3, 8), nn.Linear(8 * 4 * 4, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x), 2).view(-1, 8 * 4 * 4)
        return self.fc2(F.relu(self.fc1(x)))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.planes, self.stride, self.option = planes, stride, option
        if option == "b" and stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 and self.option == "a":
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.planes // 4, self.planes // 4))
        elif self.stride > 1:
            x = self.shortcut(x)
        return F.relu(out + x)


class PreActBlock(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(planes)
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, planes, 1, stride, bias=False) if inputs != planes else None
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(out)
        return kept + self.conv2(self.drop(F.relu(self.bn2(self.conv1(out)))))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)


class Inverted(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.expand = cbr(inputs, hidden, 1, nn.ReLU6())
        self.depthwise = cbr(hidden, hidden, 3, nn.ReLU6(), groups=hidden)
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class ResNeXtBlock(nn.Module):
    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = cbr(channels, width, 1), cbr(width, width, 3, groups=groups)
        self.conv3 = nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv3(self.conv2(self.conv1(x))))


class ConvSE(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class LinearSE(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1).view(b, c)))))
        return x * gate.view(b, c, 1, 1).expand_as(x)


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.fc1, self.fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.fc2(F.gelu(self.fc1(y)))).permute(0, 3, 1, 2)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = cbr(3, 8), cbr(8, 12), cbr(12, 16)
        self.up2, self.dec2 = nn.ConvTranspose2d(16, 12, 2, 2), cbr(24, 10)
        self.dec1, self.out = cbr(18, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.dec2(torch.cat([self.up2(self.middle(F.max_pool2d(b, 2))), b], 1))
        c = F.interpolate(c, scale_factor=2, mode="bilinear", align_corners=False)
        return self.out(self.dec1(torch.cat([c, a], 1)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.out = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(F.relu(self.a(F.relu(self.first(x)))))))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder_bias = nn.Linear(6, 12), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.encoder(x)), self.encoder.weight.t(), self.decoder_bias)


class ShuffleUnit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.conv3 = cbr(half, half, 1), cbr(half, half, 1)
        self.conv2 = nn.Sequential(nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        x = torch.cat([a, self.conv3(self.conv2(self.conv1(b)))], 1)
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class C2f(nn.Module):
    def __init__(self, channels: int, hidden: int, by_size: bool) -> None:
        super().__init__()
        self.c, self.by_size = hidden, by_size
        self.cv1, self.cv2 = cbr(channels, 2 * hidden, 1, nn.SiLU()), cbr(4 * hidden, channels, 1, nn.SiLU())
        self.m1, self.m2 = cbr(hidden, hidden, 3, nn.SiLU()), cbr(hidden, hidden, 3, nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1) if self.by_size else self.cv1(x).chunk(2, 1))
        y.append(y[-1] + self.m1(y[-1]))
        y.append(self.m2(y[-1]))
        return self.cv2(torch.cat(y, 1))


class FunctionalConv(nn.Module):
    def __init__(self, learned: bool = True) -> None:
        super().__init__()
        self.stem, self.head = cbr(3, 8), head(10)
        kernel, shift = 0.2 * torch.randn(10, 8, 3, 3), torch.randn(10)
        for name, tensor in (("kernel", kernel), ("shift", shift)):
            self.register_parameter(name, nn.Parameter(tensor)) if learned else self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(F.conv2d(self.stem(x), self.kernel, self.shift, padding=1)))


class FunctionalBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pre = cbr(3, 8)
        self.inner = FunctionalConv()
        self.inner.stem = cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.pre(x))


class SameConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class LayerScale(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.stem, self.conv, self.mid, self.head = cbr(3, 8), nn.Conv2d(8, 8, 3, padding=1), cbr(8, 6), head(6)
        self.gamma, self.shape = nn.Parameter(torch.rand(8)), shape

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.mid(x + self.gamma.view(*self.shape) * self.conv(x)))


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.from_low, self.from_high = cbr(3, 8), cbr(8, 12), cbr(8, 6, 1), cbr(12, 6, 1)
        self.shared, self.out = cbr(6, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        low = self.low(x)
        high = self.high(F.max_pool2d(low, 2))
        top = self.from_high(high)
        bottom = self.from_low(low) + F.interpolate(top, size=low.shape[-2:])
        return [self.out(self.shared(level)) for level in (bottom, top)]


class ConstantBuffer(nn.Module):
    def __init__(self, inline: bool) -> None:
        super().__init__()
        self.stem, self.mid, self.head, self.inline = cbr(3, 8), cbr(8, 10), head(10), inline
        self.register_buffer("constant", torch.randn(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + (torch.linspace(-1, 1, 8).view(1, 8, 1, 1) if self.inline else self.constant)
        return self.head(self.mid(x))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.out = cbr(3, 8), nn.Linear(6, 8), nn.Linear(16, 4)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        return self.out(torch.cat([self.image(image).mean((2, 3)), F.relu(self.vector(vector))], 1))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.out = cbr(3, 8), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        return self.out((self.image(image) * torch.sigmoid(self.vector(scale))[:, :, None, None]).mean((2, 3)))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if x.sum() > 0:
            return x * 2
        return x


class Attention(nn.Module):
    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.attention = nn.Linear(8, 24) if by_hand else nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2, self.out, self.by_hand = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3), by_hand

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        if self.by_hand:
            q, k, v = self.attention(y).chunk(3, -1)
            x = x + torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1) @ v
        else:
            x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.out((x + self.fc2(F.gelu(self.fc1(x)))).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Linear(6, 8), kind(8, 10, batch_first=True)
        self.fc, self.out = nn.Linear(10, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.fc(self.rnn(F.relu(self.embed(x)))[0][:, -1])))


def shared_twice(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    for _ in range(3):
        x = F.relu(m.conv(x))
    return m.head(x)


def spatial_attention(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    gate = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return m.head(m.mid(x * torch.sigmoid(m.conv(gate))))


def shared_norm(m: Any, x: Tensor) -> Tensor:
    return m.head(F.relu(m.norm(m.b(F.relu(m.norm(m.a(x)))))))


def shifted(x: Tensor) -> Tensor:
    up, left, still = x.split([2, 2, 4], 1)
    return torch.cat([up.roll(1, 2), left.roll(-1, 3), still], 1)


def corners(x: Tensor) -> Tensor:
    return torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)


def inplace(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    y = m.mid(x)
    y += x
    return m.head(F.relu_(y))


class Decoder(nn.Module):
    """A vector becomes an image: the linear layer's outputs are channels, each a whole block of a view."""

    def __init__(self, coded: bool) -> None:
        super().__init__()
        self.coded = coded
        self.start, self.wide, self.unflatten = nn.Linear(6, 16), nn.Linear(16, 128), nn.Unflatten(1, (-1, 4, 4))
        self.grow, self.out = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.wide(F.relu(self.start(x))))
        x = x.view(-1, 8, 4, 4) if self.coded else self.unflatten(x)
        return self.out(F.relu(self.grow(x)))
