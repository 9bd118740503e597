"""Where a fine-tuning run stands after an epoch, and its file."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.atomic import write_bytes
from prunus.errors import ArtifactError, ConfigError
from prunus.finetuneconfig import FinetuneConfig

FORMAT = "prunus-finetune-1"


@dataclass(frozen=True)
class Epoch:
    """One epoch of fine-tuning.

    Attributes:
        number: from 1; 0 is the model as it came.
        lr: learning rate of its last step.
        train_loss: mean over its steps, distillation included; NaN for epoch 0.
        validation_accuracy: top-1 on the validation split, percent.
        validation_loss: on the validation split.
    """

    number: int
    lr: float
    train_loss: float
    validation_accuracy: float
    validation_loss: float


@dataclass
class RecoveryState:
    """What the next epoch starts from, besides the model and the optimiser.

    Attributes:
        epoch: epochs done.
        waited: epochs since the best one.
        best_epoch: where the validation result was best.
        best_model: the weights of that epoch.
        best_validation: the fields of its `Evaluation`.
        history: all epochs.
    """

    epoch: int
    waited: int
    best_epoch: int
    best_model: dict[str, Tensor]
    best_validation: dict[str, Any]
    history: list[Epoch]


def save_state(
    path: Path, state: RecoveryState, model: nn.Module, optimizer: torch.optim.Optimizer, config: FinetuneConfig
) -> None:
    """Write a checkpoint under a temporary name, then rename it: at any time the file is whole.

    Raises:
        ArtifactError: it cannot be written; an older checkpoint stays.
    """
    content = {
        "format": FORMAT,
        "config": asdict(config),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "state": {**vars(state), "history": [asdict(e) for e in state.history]},
    }
    file = io.BytesIO()
    torch.save(content, file)
    write_bytes(path, file.getvalue())


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: FinetuneConfig) -> RecoveryState:
    """Read a checkpoint into the model and the optimiser; nothing is loaded unless all of it fits.

    Raises:
        ArtifactError: damaged, or of another architecture.
        ConfigError: written under other settings.
    """
    content = _read(path)
    if content["config"] != asdict(config):
        changed = sorted(k for k, v in asdict(config).items() if content["config"].get(k, None) != v)
        what = f"it was written with other settings ({', '.join(changed) or 'unknown ones'})"
        raise ConfigError(str(path), what, "resume with the same settings, or remove the checkpoint")
    mine = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if {name: tensor.shape for name, tensor in content["model"].items()} != mine:
        raise ArtifactError(str(path), "it is of another architecture", "resume with the same model")
    try:
        optimizer.load_state_dict(content["optimizer"])
    except ValueError as error:
        what = f"its optimiser trained other parameters: {error}"
        raise ArtifactError(str(path), what, "freeze the same parameters as before") from error
    model.load_state_dict(content["model"])
    stored = dict(content["state"])
    stored["history"] = [Epoch(**e) for e in stored["history"]]
    return RecoveryState(**stored)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        what = f"truncated or damaged: {type(error).__name__}"
        raise ArtifactError(str(path), what, "remove it and start again") from error
    fields = {"config", "model", "optimizer", "state"}
    if not isinstance(content, dict) or content.get("format") != FORMAT or not fields <= set(content):
        raise ArtifactError(str(path), f"not a checkpoint of format {FORMAT}", "give the file that finetune wrote")
    return content
