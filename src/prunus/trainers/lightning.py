"""A callback for Lightning's `Trainer`: learn, cut at a step, go on."""

from __future__ import annotations

from typing import Any

from prunus.errors import ConfigError, MissingDependencyError
from prunus.pipeline.prune import Result
from prunus.trainers.midway import cut_midway_

try:
    from lightning.pytorch import Callback
except ImportError as error:
    what = f"lightning cannot be imported: {error}"
    raise MissingDependencyError("the callback for Lightning", what, "pip install lightning") from error


class PruneCallback(Callback):
    """Cuts a network inside a `LightningModule`, after a step, and lets its one optimiser and schedule go on.

    Args:
        at: the trainer's global step after which it is cut.
        example_inputs: as for `prune`, for the network.
        network: attribute of the module that holds the network; the module itself knows its trainer, and is none that
            could be analysed.
        settings: of `prune`; `data` has to be among them for methods that look at data.

    Attributes:
        result: what `prune` made; None before the cut.

    Example: `Trainer(callbacks=[PruneCallback(500, x, network="net", target="macs<=60%", data=loader, loss_fn=loss)])`
    """

    def __init__(self, at: int, example_inputs: Any, *, network: str = "model", **settings: Any) -> None:
        self.at, self.example_inputs, self.network, self.settings = at, example_inputs, network, settings
        self.result: Result | None = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Cut, if it is the step.

        Raises:
            ConfigError: several processes, or several optimisers, share the network.
            PruneError: what `cut_midway_` refuses.
        """
        if self.result is not None or trainer.global_step != self.at:
            return
        if trainer.world_size > 1 or len(trainer.optimizers) != 1:
            what = f"{trainer.world_size} processes and {len(trainer.optimizers)} optimisers share the network"
            raise ConfigError("PruneCallback", what, "train with one of each up to the cut")
        network = getattr(pl_module, self.network)
        self.result = cut_midway_(network, trainer.optimizers[0], self.example_inputs, **self.settings)
