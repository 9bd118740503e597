"""A short fine-tuning on plain batches, between stages; `finetune` is the full recovery."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from prunus.data.batches import as_batches, forward
from prunus.data.losses import mean_of
from prunus.data.passes import Loop
from prunus.files.steps import MadeFrom, Stateful, Steps
from prunus.runtime.entry import entry
from prunus.runtime.modes import modes_kept
from prunus.runtime.precision import Precision, deciding, full_precision
from prunus.runtime.processes import average_over_ranks_, model_device, running_statistics
from prunus.runtime.progress import progress_bar
from prunus.runtime.renamed import another_word, renamed
from prunus.runtime.seeds import seeded
from prunus.runtime.training import BatchSource, LossFunction, Training, only_trainable


@renamed(another_word("loader", "batches"))
@entry()
def tune_(
    model: nn.Module,
    weights: Sequence[nn.Parameter],
    loader: BatchSource,
    loss_fn: LossFunction,
    *,
    epochs: int,
    lr: float,
    seed: int = 0,
    precision: Precision = "auto",
    progress: bool = False,
    steps: Steps | None = None,
    made_from: MadeFrom | None = None,
) -> None:
    """Train `weights` by Adam with a learning rate that falls linearly to zero; the model is changed.

    The next stage decides by these weights, so `precision="auto"` is fp32 on every processor. Every rank draws its own
    dropout. `steps` keeps where it stands, of what was `made_from` the same.

    Raises:
        DataError: NaN or infinity in the loss, naming epoch and step.
    """
    batches, loss_of = as_batches(loader, model), mean_of(loss_fn)
    total = epochs * len(batches)
    optimizer = torch.optim.Adam(weights, lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))
    with (
        seeded(seed, model_device(model)),
        only_trainable(model, weights),
        modes_kept(model),
        full_precision(),
        progress_bar("tuning", total, progress) as bar,
    ):
        training = Training(model, deciding(precision), bar, optimizer)
        model.train()
        parts: dict[str, Stateful] = {
            "model": model,
            "optimizer": optimizer,
            "schedule": schedule,
            "pieces": training.pieces,
        }
        loop = Loop(steps, "tuning", made_from or {}, batches, parts, {})
        bar.skip(loop.step + loop.epoch * len(batches))
        for epoch in loop.epochs(range(epochs)):
            for step, batch in loop.within(epoch):
                where = f"tuning, epoch {epoch}, step {step}"
                training.step(batch, lambda x, y: loss_of(forward(model, x), y), where)
                schedule.step()
        average_over_ranks_(running_statistics(model))
