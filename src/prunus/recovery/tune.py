"""A short fine-tuning on plain batches, between stages; `finetune` is the full recovery."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from prunus.data.batches import as_batches, forward
from prunus.data.losses import mean_of
from prunus.runtime.entry import entry
from prunus.runtime.modes import modes_kept
from prunus.runtime.precision import Precision, autocast, deciding, full_precision, to_device
from prunus.runtime.processes import average_gradients_, average_over_ranks_, model_device, rank, running_statistics
from prunus.runtime.progress import progress_bar
from prunus.runtime.training import (
    BatchSource,
    LossFunction,
    backward,
    check_loss,
    only_trainable,
)


@entry()
def tune_(
    model: nn.Module,
    weights: Sequence[nn.Parameter],
    batches: BatchSource,
    loss_fn: LossFunction,
    *,
    epochs: int,
    lr: float,
    seed: int = 0,
    precision: Precision = "auto",
    progress: bool = False,
) -> None:
    """Train `weights` by Adam with a learning rate that falls linearly to zero; the model is changed.

    The next stage decides by these weights, so `precision="auto"` is fp32 on every processor. Every rank draws its own
    dropout.

    Raises:
        DataError: NaN or infinity in the loss, naming epoch and step.
    """
    loader, loss_of = as_batches(batches, model), mean_of(loss_fn)
    device, total = model_device(model), epochs * len(loader)
    optimizer = torch.optim.Adam(weights, lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        only_trainable(model, weights),
        modes_kept(model),
        full_precision(),
        progress_bar("tuning", total, progress) as bar,
    ):
        torch.manual_seed(seed + 7919 * rank())
        model.train()
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            for step, (x, y) in enumerate(loader):
                inputs = to_device(x, device)
                with autocast(device, deciding(precision)):
                    loss = loss_of(forward(model, inputs), to_device(y, device))
                check_loss(loss, inputs, f"tuning, epoch {epoch}, step {step}", model)
                optimizer.zero_grad(set_to_none=True)
                backward(loss)
                average_gradients_(weights)
                optimizer.step()
                schedule.step()
                bar.advance()
        average_over_ranks_(running_statistics(model))
