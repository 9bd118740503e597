"""A callback for Lightning's `Trainer`: learn, cut at a step, go on; and its checkpoints, read into a dense module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from prunus.errors import ConfigError, SurgeryError
from prunus.pipeline.prune import Result
from prunus.plan.plan import Plan
from prunus.runtime.extras import from_extra
from prunus.surgery.configuration import keep_configuration_true_
from prunus.surgery.cut import cut_
from prunus.surgery.shallower import shorten_
from prunus.trainers.midway import cut_midway_

Callback: Any = from_extra("lightning.pytorch", "lightning", "the callback for Lightning").Callback
CUTS = "prunus"
"""Key of a checkpoint under which every cut stands: after which step, of which network, by which plan."""


class PruneCallback(Callback):
    """Cuts a network inside a `LightningModule`, after a step, and lets its one optimiser and schedule go on.

    Checkpoints tell of the cut, so that `cut_as_saved_` can load them into a dense module, to go on or to use it.

    Args:
        at: the trainer's global step after which it is cut.
        example_inputs: as for `prune`, for the network.
        network: attribute of the module that holds the network; the module itself knows its trainer, and is none that
            could be analysed.
        settings: of `prune`; without `data` the trainer's own loader.

    Attributes:
        result: what `prune` made; None before the cut, and after one that a checkpoint told of.
        plan: what was cut; None before.

    Example: `Trainer(callbacks=[PruneCallback(500, x, network="net", target="macs<=60%", loss_fn=loss)])`
    """

    def __init__(self, at: int, example_inputs: Any, *, network: str = "model", **settings: Any) -> None:
        self.at, self.example_inputs, self.network, self.settings = at, example_inputs, network, settings
        self.result: Result | None = None
        self.plan: Plan | None = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Cut, if it is the step.

        Raises:
            ConfigError: several processes, or several optimisers, share the network.
            PruneError: what `cut_midway_` refuses.
        """
        if self.plan is not None or trainer.global_step != self.at:
            return
        if trainer.world_size > 1 or len(trainer.optimizers) != 1:
            what = f"{trainer.world_size} processes and {len(trainer.optimizers)} optimisers share the network"
            raise ConfigError("PruneCallback", what, "train with one of each up to the cut")
        settings = {"data": trainer.train_dataloader, **self.settings}
        network = pl_module.get_submodule(self.network)
        self.result = cut_midway_(network, trainer.optimizers[0], self.example_inputs, **settings)
        self.plan = self.result.plan

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Write the cut into the checkpoint."""
        if self.plan is not None:
            told = {"at": self.at, "network": self.network, "plan": self.plan.to_json()}
            checkpoint.setdefault(CUTS, []).append(told)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Mapping[str, Any]) -> None:
        """Take the cut as done if the checkpoint tells of it."""
        own = [c for c in checkpoint.get(CUTS, ()) if (c["at"], c["network"]) == (self.at, self.network)]
        self.plan = Plan.from_json(own[0]["plan"]) if own else None


def cut_as_saved_(pl_module: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Cut a dense `LightningModule` as it was when the checkpoint was written; its weights are loaded afterwards.

    To be called by the module's own `on_load_checkpoint`, through which `load_from_checkpoint` and
    `Trainer.fit(ckpt_path=...)` go. A checkpoint without a cut, and a module that is cut already, are left alone.

    Args:
        pl_module: the module, as its class makes it.
        checkpoint: what Lightning read.

    Raises:
        SurgeryError: it is smaller than the module and tells of no cut (written with `save_weights_only=True`).
        PlanError: the cut was made in another network.

    Example: `def on_load_checkpoint(self, checkpoint): cut_as_saved_(self, checkpoint)`
    """
    if not (odd := _other_shape(pl_module, checkpoint)):
        return
    if not checkpoint.get(CUTS):
        what = f"{odd!r} has another shape there, and it tells of no cut"
        raise SurgeryError(
            "checkpoint", what, "save it whole (save_weights_only=False), with PruneCallback in the Trainer"
        )
    for cut in sorted(checkpoint[CUTS], key=lambda c: c["at"]):
        network, plan = pl_module.get_submodule(cut["network"]), Plan.from_json(cut["plan"])
        cut_(network, plan)
        shorten_(network, plan.removal)
        keep_configuration_true_(network, plan)


def _other_shape(pl_module: nn.Module, checkpoint: Mapping[str, Any]) -> str:
    """Name of a tensor that the module has in another shape, or has besides; empty if there is none."""
    saved = checkpoint["state_dict"]
    own = pl_module.state_dict()
    return next((n for n, t in own.items() if n not in saved or saved[n].shape != t.shape), "")
