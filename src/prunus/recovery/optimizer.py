"""What fine-tuning steps with: the optimiser, and its learning rate step by step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from prunus.recovery.config import FinetuneConfig


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Factor of the peak learning rate at a step.

    Args:
        step: from 0.
        total: number of steps.
        warmup: fraction of the steps, in [0, 1), with a linear rise; the rest follows half a cosine down to zero.

    Returns:
        A factor in (0, 1].
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(total - rising, 1)))


def make_optimizer(model: nn.Module, config: FinetuneConfig) -> torch.optim.Optimizer:
    """The optimiser over the trainable parameters; weight decay on matrices and kernels, not on biases and norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.peak, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.peak, momentum=config.momentum, nesterov=config.momentum > 0)
