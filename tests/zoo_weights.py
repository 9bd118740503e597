"""Networks whose weights reach their layer through operations, or that multiply with parameters that no layer holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torch.nn.utils.prune as torch_prune
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from zoo_nets import Net, cbr, head, seq


class CastLinear(nn.Linear):
    """Mixed precision by hand, as in Whisper."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class CastConv(nn.Conv2d):
    """The same, through an intermediate dtype and copies."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.double().contiguous().clone().to(x.dtype)[:]
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class PointwiseAsLinear(nn.Conv2d):
    """A 1x1 convolution applied to the last dimension: four dimensions stored, two contracted."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.squeeze(-1).flatten(1), self.bias)


class Equalised(nn.Linear):
    """Equalised learning rate: the weight is scaled at run time."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.scale = (2.0 / inputs) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)


class Standardised(nn.Conv2d):
    """Each row has mean zero and standard deviation one over its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        scale = self.weight.var((1, 2, 3), keepdim=True).add(1e-5).rsqrt()
        return F.conv2d(x, (self.weight - mean) * scale, self.bias, padding=self.padding)


class LowRank(nn.Module):
    """A weight with a product of two thin matrices added (LoRA)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.randn(outputs))
        self.up, self.down = nn.Parameter(torch.randn(outputs, 2)), nn.Parameter(torch.randn(2, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + 0.5 * self.up @ self.down, self.bias)


class FusedPieces(nn.Module):
    """Three layers' parameters concatenated and applied at once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.q, self.k, self.v = (nn.Linear(i, o) for i, o in ((6, 8), (8, 10), (8, 10), (8, 12)))
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.q, self.k, self.v)
        fused = F.linear(
            F.relu(self.stem(x)), torch.cat([m.weight for m in layers]), torch.cat([m.bias for m in layers])
        )
        q, k, v = fused.split([m.weight.shape[0] for m in layers], -1)
        return self.out(F.relu(v) * (q.tanh() * k.tanh()).mean(-1, keepdim=True))


class PiecesOfOne(nn.Module):
    """One parameter of which slices are applied apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(6, 8), nn.Linear(5, 3)
        self.both = nn.Parameter(torch.randn(8, 10))

    def forward(self, x: Tensor) -> Tensor:
        h, width = F.relu(self.stem(x)), self.both.shape[1] // 2
        return self.out(F.relu(h @ self.both[:, :width]) * torch.sigmoid(h @ self.both[:, width:]))


class StoredMatmul(nn.Module):
    """A plain product with a parameter in the middle of a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(6, 8), nn.Linear(4, 3)
        self.first, self.second = nn.Parameter(torch.randn(8, 10)), nn.Parameter(torch.randn(10, 4))
        self.shift = nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(torch.matmul(F.relu(self.stem(x)), self.first) + self.shift)
        return self.out(F.relu(h @ self.second))


class Splines(nn.Module):
    """A Kolmogorov-Arnold layer: a base and several columns per unit, read by functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(6, 8), nn.Linear(10, 3)
        self.base, self.spline = nn.Parameter(torch.randn(10, 8)), nn.Parameter(torch.randn(10, 8, 4))
        self.register_buffer("knots", torch.linspace(-1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        bases = torch.exp(-((h.unsqueeze(-1) - self.knots) ** 2)) * h.unsqueeze(-1)
        return self.out(F.relu(F.linear(F.silu(h), self.base) + F.linear(bases.flatten(1), self.spline.flatten(1))))


class ReadTwice(nn.Module):
    """One parameter contracted along both of its dimensions, once by a layer's own call."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.out = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.mid(F.relu(self.stem(x))))
        return self.out(F.relu(h @ self.mid.weight))


class Autocast(nn.Module):
    """Layers inside a region of another precision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.out = cbr(3, 8), cbr(8, 6), head(6)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            h = self.mid(self.stem(x))
        with torch.enable_grad():
            return self.out(h)


class AutocastHardCoded(nn.Module):
    """Sizes in the code inside and outside of a region of another precision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.last, self.out = cbr(3, 8), nn.Linear(128, 10), nn.Linear(10, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            h = F.relu(self.mid(self.stem(x).view(-1, 128)))
        return self.out(F.relu(self.last(h).view(-1, 2, 12)).view(-1, 24))


class Doubled(nn.Module):
    """An elementwise parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.tanh(weight) * 2


def layers(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Convolutions and a linear layer, each with its weight wrapped, and a plain classifier."""
    body = (wrap(nn.Conv2d(3, 8, 3, padding=1)), nn.ReLU(), wrap(nn.Conv2d(8, 6, 3, padding=1)), nn.ReLU())
    return seq(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), wrap(nn.Linear(24, 10)), nn.ReLU(), nn.Linear(10, 3))


def vocoder(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Residual blocks behind transposed convolutions, everything wrapped."""

    def block(width: int) -> nn.Module:
        return Net(
            lambda m, x: x + m.b(F.leaky_relu(m.a(F.leaky_relu(x, 0.1)), 0.1)),
            a=wrap(nn.Conv1d(width, width, 3, padding=1)),
            b=wrap(nn.Conv1d(width, width, 3, padding=3, dilation=3)),
        )

    ups = seq(wrap(nn.ConvTranspose1d(16, 8, 4, 2, 1)), block(8), wrap(nn.ConvTranspose1d(8, 6, 4, 2, 1)), block(6))
    return seq(wrap(nn.Conv1d(5, 16, 3, padding=1)), nn.LeakyReLU(0.1), ups, wrap(nn.Conv1d(6, 1, 3, padding=1)))


def masked(layer: nn.Module) -> nn.Module:
    """Some rows and some single weights set to zero by torch's own tool, which keeps the mask apart."""
    torch_prune.ln_structured(layer, "weight", 0.25, n=1, dim=0)
    torch_prune.l1_unstructured(layer, "weight", 0.2)
    return layer


def doubled(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def weight_norm(layer: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(layer)


def weight_norm_by_hook(layer: nn.Module) -> nn.Module:
    return nn.utils.weight_norm(layer)


def one_norm(layer: nn.Module) -> nn.Module:
    """One length for the whole weight."""
    return parametrizations.weight_norm(layer, dim=None)


def along_inputs(layer: nn.Module) -> nn.Module:
    """A length for each input."""
    return parametrizations.weight_norm(layer, dim=1)


def grouped(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Grouped and depthwise convolutions whose weights are computed."""
    body = (cbr(3, 8), wrap(nn.Conv2d(8, 8, 3, padding=1, groups=8)), nn.ReLU(), cbr(8, 12))
    return seq(*body, wrap(nn.Conv2d(12, 8, 3, padding=1, groups=2)), nn.ReLU(), head(8))


class EinsumLayer(nn.Module):
    """A linear layer as an einsum with a stored parameter, in the middle of a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(6, 8), nn.Linear(10, 3)
        self.kernel, self.shift = nn.Parameter(torch.randn(8, 10)), nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(torch.einsum("bnc,cd->bnd", F.relu(self.stem(x)), self.kernel) + self.shift))


class EinsumHeads(nn.Module):
    """Attention by einsum with weights that are stored per head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(8, 4, 5)) for _ in range(3))
        self.merge = nn.Parameter(torch.randn(4, 5, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        q, k, v = (torch.einsum("bnc,chd->bhnd", h, w) for w in (self.q, self.k, self.v))
        scores = torch.einsum("bhnd,bhmd->bhnm", q, k).softmax(-1)
        return self.out(h + torch.einsum("bhnd,hdc->bnc", torch.einsum("bhnm,bhmd->bhnd", scores, v), self.merge))


class OnTheLeft(nn.Module):
    """A parameter multiplied from the left, and one expanded over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv1d(5, 8, 3, padding=1), nn.Linear(10, 3)
        self.left, self.right = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(1, 6, 10))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(torch.matmul(self.left, F.relu(self.stem(x))))
        return self.out(F.relu(torch.bmm(h.transpose(1, 2), self.right.expand(x.shape[0], -1, -1))))


class EdgeKernels(nn.Module):
    """A matrix for each position of a fixed dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(6, 8), nn.Linear(10, 3)
        self.kernels = nn.Parameter(torch.randn(5, 8, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(torch.einsum("bnc,ncd->bnd", F.relu(self.stem(x)), self.kernels)))


def transposed(groups: int, outputs: int, dims: int = 2) -> nn.Module:
    """A grouped or depthwise transposed convolution between plain ones."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
    body = (conv(3, 8, 3, padding=1), nn.ReLU(), up(8, outputs, 4, 2, 1, groups=groups), nn.ReLU())
    return seq(*body, conv(outputs, 6, 3, padding=1), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(6, 3))


def three_dimensional() -> nn.Module:
    """Grouped, depthwise and transposed convolutions of volumes."""
    body = (nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1, groups=8))
    tail = (nn.Conv3d(8, 12, 1, groups=2), nn.ReLU(), nn.ConvTranspose3d(12, 6, 2, 2), nn.ReLU())
    return seq(*body, *tail, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3))
