"""The networks of the papers and of the benchmarks, under the names that their public weights use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import ArtifactError

VGG16_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512)
POOL_AFTER = (1, 3, 6, 9, 12)
RESNET_WIDTHS = (16, 32, 64)


class LeNet(nn.Module):
    """Dirichlet pruning's LeNet for 28x28 grey images: conv, pool, ReLU, batch norm, dropout.

    Args:
        widths: units of the two convolutions and the two hidden linear layers.
        dropout: probability, after every batch norm.
        classes: number of classes.
    """

    def __init__(
        self, widths: tuple[int, int, int, int] = (10, 20, 100, 25), dropout: float = 0.5, classes: int = 10
    ) -> None:
        super().__init__()
        a, b, c, d = widths
        self.c1, self.bn1 = nn.Conv2d(1, a, 5), nn.BatchNorm2d(a)
        self.c3, self.bn2 = nn.Conv2d(a, b, 5), nn.BatchNorm2d(b)
        self.c5, self.bn3 = nn.Linear(b * 16, c), nn.BatchNorm1d(c)
        self.f6, self.bn4 = nn.Linear(c, d), nn.BatchNorm1d(d)
        self.output = nn.Linear(d, classes)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 1, 28, 28]."""
        x = self.drop(self.bn1(F.relu(F.max_pool2d(self.c1(x), 2))))
        x = self.drop(self.bn2(F.relu(F.max_pool2d(self.c3(x), 2))))
        x = self.drop(self.bn3(F.relu(self.c5(x.flatten(1)))))
        x = self.drop(self.bn4(F.relu(self.f6(x))))
        return self.output(x)


class LeNet300100(nn.Module):
    """The 784-300-100-10 perceptron.

    Args:
        widths: units of the two hidden layers.
        classes: number of classes.
    """

    def __init__(self, widths: tuple[int, int] = (300, 100), classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, widths[0])
        self.fc2 = nn.Linear(widths[0], widths[1])
        self.fc3 = nn.Linear(widths[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 1, 28, 28]."""
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


class PadShortcut(nn.Module):
    """Option A of the ResNet paper: every other pixel, and zero channels on both sides; no parameters.

    Args:
        planes: channels afterwards.
    """

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: Tensor) -> Tensor:
        """[B, planes / 2, H, W] -> [B, planes, H / 2, W / 2]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.planes // 4, self.planes // 4))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut.

    Args:
        in_planes: channels of the input.
        planes: channels of the output.
        stride: of the first convolution.
        hidden: channels between the two convolutions.
    """

    def __init__(self, in_planes: int, planes: int, stride: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, hidden, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        same = stride == 1 and in_planes == planes
        self.shortcut: nn.Module = nn.Sequential() if same else PadShortcut(planes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_planes, H, W] -> [B, planes, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for 32x32 images with option-A shortcuts, key by key that of the public checkpoints.

    Args:
        depth: 20, 32, 44, 56, 110...
        hidden: channels inside the blocks of the three stages.
        classes: number of classes.
    """

    def __init__(self, depth: int = 20, hidden: tuple[int, int, int] = RESNET_WIDTHS, classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, hidden[0], blocks)
        self.layer2 = _stage(16, 32, 2, hidden[1], blocks)
        self.layer3 = _stage(32, 64, 2, hidden[2], blocks)
        self.linear = nn.Linear(64, classes)
        self.apply(_kaiming_)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 3, 32, 32]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(in_planes: int, planes: int, stride: int, hidden: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(in_planes, planes, stride, hidden)
    return nn.Sequential(first, *(BasicBlock(planes, planes, 1, hidden) for _ in range(blocks - 1)))


def _kaiming_(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)


def resnet20() -> CifarResNet:
    """ResNet-20: 269,722 parameters."""
    return CifarResNet(20)


def resnet32() -> CifarResNet:
    """ResNet-32: 464,154 parameters."""
    return CifarResNet(32)


def resnet56() -> CifarResNet:
    """ResNet-56: 853,018 parameters."""
    return CifarResNet(56)


def load_checkpoint(path: str | Path) -> CifarResNet:
    """A CIFAR ResNet with the weights of a public `.th` file, in eval mode; the depth is read off the keys.

    Args:
        path: file with a `state_dict` whose keys may start with `module.`.

    Raises:
        ArtifactError: the file is missing, damaged, or of another architecture.
    """
    fix = "give a resnet20/32/56 .th file for CIFAR-10"
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ArtifactError(str(path), f"cannot be read: {error}", fix) from error
    weights = {k.removeprefix("module."): v for k, v in stored.get("state_dict", stored).items()}
    numbers = [int(found[1]) for k in weights if (found := re.match(r"layer1\.(\d+)\.", k))]
    model = CifarResNet(6 * (max(numbers, default=0) + 1) + 2)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ArtifactError(str(path), f"another architecture: {error}", fix) from error
    return model.eval()


class VGG16(nn.Module):
    """VGG-16 with batch norm for 32x32 images: 13 convolutions, one hidden linear layer.

    Args:
        widths: channels of the 13 convolutions and units of the hidden layer.
        classes: number of classes.
    """

    def __init__(self, widths: Sequence[int] = VGG16_WIDTHS, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for number, width in enumerate(widths[:13]):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            if number in POOL_AFTER:
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        hidden = widths[13]
        self.classifier = nn.Sequential(
            nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )
        self.apply(_kaiming_)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 3, 32, 32]."""
        return self.classifier(self.features(x).flatten(1))


class WideBlock(nn.Module):
    """Batch norm, ReLU and 3x3 convolution, twice, around a shortcut.

    The stride sits in the second convolution, as in the code that Dirichlet pruning used (5.95 G MACs); in the first,
    as in the paper on wide ResNets, it would be 5.25 G.

    Args:
        in_planes: channels of the input.
        planes: channels of the output.
        stride: of the second convolution.
        hidden: channels between the two convolutions.
        dropout: probability between them.
    """

    def __init__(self, in_planes: int, planes: int, stride: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, hidden, 3, 1, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, planes, 3, stride, 1, bias=False)
        same = stride == 1 and in_planes == planes
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(in_planes, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_planes, H, W] -> [B, planes, H / stride, W / stride]."""
        out = self.dropout(self.conv1(F.relu(self.bn1(x))))
        return self.conv2(F.relu(self.bn2(out))) + self.shortcut(x)


class WideResNet(nn.Module):
    """WideResNet-28-10 for 32x32 images.

    Args:
        hidden: channels between the two convolutions of each of the 12 blocks.
        dropout: probability inside the blocks.
        classes: number of classes.
    """

    def __init__(self, hidden: Sequence[int] | None = None, dropout: float = 0.0, classes: int = 10) -> None:
        super().__init__()
        planes = [width for width in (160, 320, 640) for _ in range(4)]
        strides = [1, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1]
        inputs = [16, *planes[:-1]]
        shapes = zip(inputs, planes, strides, hidden or planes, strict=True)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(*(WideBlock(*shape, dropout) for shape in shapes))
        self.bn1 = nn.BatchNorm2d(640)
        self.linear = nn.Linear(640, classes)
        self.apply(_kaiming_)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 3, 32, 32]."""
        x = F.relu(self.bn1(self.blocks(self.conv1(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
