"""A small network to try things on: Caffe's LeNet-5, trained in about a minute on one CPU core."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.data.datasets import DataSource
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.finetuning import FinetuneResult, finetune
from prunus.runtime.seeds import seeded


class LeNet5(nn.Module):
    """Caffe's LeNet-5 for 28 x 28 grey images: 20-50-500, 2.293 M MACs, 430,500 weights.

    Shape:
        float32 [B, 1, 28, 28] -> logits [B, num_classes].
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the images."""
        x = F.max_pool2d(self.conv1(images), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def train_dense(
    model: nn.Module,
    data: DataSource,
    *,
    epochs: int = 15,
    lr: float = 0.05,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> FinetuneResult:
    """Train a network from its present weights, without a teacher; see `finetune` for what holds.

    Args:
        model: trained in place; make it under `torch.manual_seed` for the same result every time.
        data: learned from its training split, chosen on its validation split.
        epochs: passes over the training split.
        lr: peak learning rate of SGD with Nesterov momentum.
        seed: of order, augmentation and dropout.
        batch_size: over all processes together.
        progress: show a bar where there is a terminal.
        checkpoint: file to write after every epoch.
        resume: go on from the checkpoint if it is there.

    Raises:
        ConfigError: a setting outside its range.
        ArtifactError: a checkpoint that is damaged or cannot be written.
        DataError: NaN or infinity in loss or gradients.
    """
    # Without normalisation layers this rate diverges from some starts; clipping costs nothing where it does not.
    config = FinetuneConfig(epochs=epochs, lr=lr, seed=seed, batch_size=batch_size, clip_grad_norm=1.0)
    return finetune(model, data, config, progress=progress, checkpoint=checkpoint, resume=resume)


def lenet5(seed: int = 0) -> tuple[nn.Module, Tensor]:
    """An untrained LeNet-5 and example inputs, for the command line's `prunus.pipeline.demo:lenet5`."""
    with seeded(seed, alike=True):
        return LeNet5(), torch.zeros(2, 1, 28, 28)
