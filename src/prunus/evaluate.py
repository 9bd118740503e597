"""Accuracy and loss of a model on one part of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.datasets import ArrayDataset, Batches
from prunus.errors import DataError
from prunus.modes import eval_mode
from prunus.parallel import accelerator, model_device
from prunus.precision import Precision, autocast


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        accuracy: top-1, percent.
        loss: mean over the examples.
        num_examples: how many, over all ranks.
    """

    accuracy: float
    loss: float
    num_examples: int


def evaluate(
    model: nn.Module,
    dataset: ArrayDataset,
    *,
    loss_fn: Callable[..., Tensor] = F.cross_entropy,
    batch_size: int = 500,
    precision: Precision = "fp32",
) -> Evaluation:
    """Measure a classifier in eval mode, on the device where it lies; modes are put back.

    Under several processes every rank must call this; each takes its share and all get the same answer.

    Args:
        model: images [B, C, H, W] -> logits [B, classes].
        dataset: what to measure on; every example counts once.
        loss_fn: must take `reduction="sum"`.
        batch_size: over all ranks together; raised to the number of ranks if smaller.
        precision: of the forward pass.

    Raises:
        DataError: NaN or infinity in the outputs.
    """
    device = model_device(model)
    with accelerator() as processes:
        rank, world = processes.process_index, processes.num_processes
        batches = Batches(dataset, max(batch_size, world), rank=rank, world=world)
        totals = _totals(model, batches, loss_fn, device, precision)
        if world > 1:
            totals = processes.reduce(totals.to(processes.device), "sum")
    right, loss, count, broken = totals.tolist()
    if broken:
        what = f"NaN or infinity in the outputs for {int(broken)} of {int(count)} examples"
        raise DataError("evaluation", what, "check the inputs, and the weights of the model, for NaN")
    return Evaluation(100.0 * right / count, loss / count, int(count))


def _totals(
    model: nn.Module, batches: Batches, loss_fn: Callable[..., Any], device: torch.device, precision: Precision
) -> Tensor:
    """Float64 [4]: right answers, summed loss, examples, examples with broken outputs."""
    # Not every device has float64; the CPU sums exactly either way.
    totals = torch.zeros(4, dtype=torch.float64)
    with eval_mode(model), torch.no_grad():
        for images, labels in batches:
            x, y = images.to(device), labels.to(device)
            with autocast(device, precision):
                outputs = model(x)
            outputs = outputs.float()
            broken = (~torch.isfinite(outputs)).flatten(1).any(1).sum()
            right = (outputs.argmax(1) == y).sum()
            loss = loss_fn(outputs, y, reduction="sum")
            totals += torch.stack([right.float(), loss, torch.full_like(loss, len(y)), broken.float()]).cpu()
    return totals
