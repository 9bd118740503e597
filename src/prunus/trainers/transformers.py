"""A callback for transformers' `Trainer`: learn, cut at a step, go on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunus.data.batches import as_batches
from prunus.errors import ConfigError
from prunus.pipeline.prune import Result
from prunus.runtime.extras import from_extra
from prunus.trainers.midway import cut_midway_

TrainerCallback: Any = from_extra("transformers", "hf", "the callback for Trainer").TrainerCallback


class PruneCallback(TrainerCallback):
    """Cuts the model that a `Trainer` trains, after a step, and lets it go on with its optimiser and schedule.

    Args:
        at: the optimiser's step after which it is cut.
        example_inputs: as for `prune`; None takes the first batch of the trainer's loader, without its labels.
        settings: of `prune`; without `data` the trainer's own loader, and without `loss_fn` the model's own loss.

    Attributes:
        result: what `prune` made; None before the cut.

    Example: `Trainer(model, args, train_dataset=..., callbacks=[PruneCallback(500, target="macs<=60%")])`
    """

    def __init__(self, at: int, example_inputs: Any = None, **settings: Any) -> None:
        self.at, self.example_inputs, self.settings = at, example_inputs, settings
        self.result: Result | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Cut, if it is the step.

        Raises:
            ConfigError: several processes or devices share the model.
            PruneError: what `cut_midway_` refuses.
        """
        if state.global_step != self.at:
            return
        model, optimizer, loader = given["model"], given["optimizer"], given["train_dataloader"]
        if args.world_size > 1 or args.n_gpu > 1:
            what = f"{max(args.world_size, args.n_gpu)} processes or devices share the model"
            raise ConfigError("PruneCallback", what, "train on one up to the cut, or cut between two trainings")
        inputs = _without_labels(model, loader) if self.example_inputs is None else self.example_inputs
        settings = {"data": loader, **self.settings}
        self.result = cut_midway_(model, _own(optimizer), inputs, **settings)


def _own(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner if isinstance(inner, torch.optim.Optimizer) else optimizer


def _without_labels(model: nn.Module, loader: Any) -> Any:
    inputs, _ = as_batches(loader, model).first()
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in inputs.items() if name not in ("labels", "label")}
