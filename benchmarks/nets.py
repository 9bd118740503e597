"""The networks of the papers' experiments. Trained weights come from outside: see `load_checkpoint`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import ArtifactError
from prunus.layers.inputs import SelectInputs

VGG_DENSE = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512)
VGG_POOLS_AFTER = (2, 4, 7, 10, 13)


class SmallLeNet(nn.Module):
    """LeNet 10-20-100-25 of Dirichlet pruning: conv, pool, ReLU, batch norm, dropout; 28 x 28 grey images."""

    def __init__(self, widths: Sequence[int] = (10, 20, 100, 25), dropout: float = 0.5, num_classes: int = 10) -> None:
        super().__init__()
        c1, c2, f1, f2 = widths
        self.conv1, self.bn1 = nn.Conv2d(1, c1, 5), nn.BatchNorm2d(c1)
        self.conv2, self.bn2 = nn.Conv2d(c1, c2, 5), nn.BatchNorm2d(c2)
        self.fc1, self.bn3 = nn.Linear(16 * c2, f1), nn.BatchNorm1d(f1)
        self.fc2, self.bn4 = nn.Linear(f1, f2), nn.BatchNorm1d(f2)
        self.fc3 = nn.Linear(f2, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        x = self.dropout(self.bn1(F.relu(F.max_pool2d(self.conv1(images), 2))))
        x = self.dropout(self.bn2(F.relu(F.max_pool2d(self.conv2(x), 2))))
        x = self.dropout(self.bn3(F.relu(self.fc1(x.flatten(1)))))
        x = self.dropout(self.bn4(F.relu(self.fc2(x))))
        return self.fc3(x)


class LeNet300(nn.Module):
    """LeNet-300-100: two hidden layers on 784 pixels, which can be pruned too if `select_pixels`."""

    def __init__(
        self, widths: Sequence[int] = (300, 100), num_classes: int = 10, *, select_pixels: bool = False
    ) -> None:
        super().__init__()
        self.pixels = SelectInputs(784) if select_pixels else nn.Identity()
        self.fc1 = nn.Linear(784, widths[0])
        self.fc2 = nn.Linear(widths[0], widths[1])
        self.fc3 = nn.Linear(widths[1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.pixels(images.flatten(1))))
        return self.fc3(F.relu(self.fc2(x)))


class ZeroPadShortcut(nn.Module):
    """Option A: every second pixel, the new channels zero, half of them before and half after the old ones."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.before = added // 2
        self.after = added - added // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a parameter-free shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else ZeroPadShortcut(outputs - inputs)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of 6 n + 2 layers for 32 x 32 images; parameter names as in akamaster's checkpoints."""

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1)
        self.layer2 = _stage(16, 32, blocks, 2)
        self.layer3 = _stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class CifarVGG16(nn.Module):
    """VGG-16 with batch norm for 32 x 32 images: 13 convolutions and one hidden layer, widths in this order."""

    def __init__(self, widths: Sequence[int] = VGG_DENSE, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for number, width in enumerate(widths[:13], 1):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if number in VGG_POOLS_AFTER else []
            before = width
        self.features = nn.Sequential(*layers)
        self.hidden, self.bn = nn.Linear(before, widths[13]), nn.BatchNorm1d(widths[13])
        self.classifier = nn.Linear(widths[13], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images).flatten(1)
        return self.classifier(F.relu(self.bn(self.hidden(x))))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def resnet8() -> CifarResNet:
    return CifarResNet(8)


def resnet20() -> CifarResNet:
    return CifarResNet(20)


def resnet32() -> CifarResNet:
    return CifarResNet(32)


def resnet56() -> CifarResNet:
    return CifarResNet(56)


def load_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Load weights in place; a `state_dict` entry around them and a `module.` prefix are taken off.

    Raises:
        ArtifactError: the file is damaged, or of another architecture; the model is as it was.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ArtifactError(str(path), f"it cannot be read: {error}", "copy the checkpoint again") from error
    weights = {k.removeprefix("module."): v for k, v in content.get("state_dict", content).items()}
    # Checkpoints older than PyTorch 0.4.1 lack the counters, which eval mode doesn't use.
    mine = model.state_dict()
    weights |= {k: v for k, v in mine.items() if k.endswith("num_batches_tracked") and k not in weights}
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in mine.items()}:
        odd = sorted(set(weights) ^ set(mine))[:4] or "the same names, other shapes"
        raise ArtifactError(str(path), f"it is of another architecture ({odd})", "load it into the model it belongs to")
    model.load_state_dict(weights)
    return model
