"""Where a fine-tuning run stands after an epoch, and its file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.evaluation import Evaluation
from prunus.errors import ArtifactError, ConfigError, first_line
from prunus.files.fingerprint import data_digest, tree_digest, weights_digest
from prunus.files.resumable import check_fits, check_same_run, read_checked, refusal, write_checked
from prunus.recovery.config import FinetuneConfig
from prunus.runtime.curves import point

FORMAT = "prunus-finetune-4"


@dataclass(frozen=True)
class Epoch:
    """One epoch of fine-tuning.

    Attributes:
        number: from 1; 0 is the model as it came.
        lr: learning rate of its last step.
        train_loss: mean over its steps, distillation included; NaN for epoch 0.
        validation_score: on the validation split: top-1 in percent, or the data's own metric.
        validation_loss: on the validation split.
    """

    number: int
    lr: float
    train_loss: float
    validation_score: float
    validation_loss: float

    def tell(self) -> None:
        """Tell its numbers to whoever listens."""
        for curve in ("lr", "train_loss", "validation_score", "validation_loss"):
            point(f"recovery/{curve}", getattr(self, curve), self.number)

    @property
    def validation_accuracy(self) -> float:
        """The score, as it was called where it could be nothing else."""
        return self.validation_score


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
        spread: variance of the teacher's outputs in the very first batch, see `Objective.spread`.
        position: where whatever orders the batches stands, see `data.passes`.
    """

    epoch: int
    waited: int
    best_epoch: int
    best_model: dict[str, Tensor]
    best_validation: dict[str, Any]
    history: list[Epoch]
    spread: tuple[float, ...] = ()
    position: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """What a run was made from, as digests.

    Attributes:
        weights: of the model as it came.
        teacher: of the teacher; empty without one.
        data: of the training and the validation split.
    """

    weights: str
    teacher: str
    data: str


def origin_of(model: nn.Module, teacher: nn.Module | None, data: Sequence[Any]) -> Origin:
    """Digests of a run that begins, from the model, the teacher and the splits it reads."""
    taught = "" if teacher is None else weights_digest(teacher)
    return Origin(tree_digest(model.state_dict()), taught, " ".join(data_digest(part) for part in data))


def save_state(
    path: Path,
    state: RecoveryState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: FinetuneConfig,
    origin: Origin,
) -> None:
    """Write a checkpoint; at any time the file is whole.

    Raises:
        ArtifactError: it cannot be written; an older checkpoint stays.
    """
    content = {
        "origin": asdict(origin),
        "config": asdict(config),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "state": {**vars(state), "history": [asdict(e) for e in state.history]},
    }
    write_checked(path, FORMAT, content)


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: FinetuneConfig, origin: Origin
) -> tuple[RecoveryState, Origin]:
    """Read a checkpoint into the model and the optimiser; nothing is loaded unless all of it fits.

    Args:
        path: the file.
        model: as the run began with it, or as an interrupted run left it.
        optimizer: over the same parameters.
        config: the same settings.
        origin: what this run is made from.

    Returns:
        Where the run stands, and what it was made from at its very beginning.

    Raises:
        ArtifactError: damaged, edited, of another architecture, or made from other weights or data.
        ConfigError: written under other settings.
    """
    content = read_checked(path, FORMAT, ("origin", "config", "model", "optimizer", "state"))
    mappings = all(isinstance(part, dict) for part in content.values())
    if not mappings or not isinstance(content["state"].get("best_model"), dict):
        raise refusal(path, "damaged: its parts are no mappings")
    if content["config"] != asdict(config):
        changed = sorted(k for k, v in asdict(config).items() if content["config"].get(k, None) != v)
        what = f"it was written with other settings ({', '.join(changed) or 'unknown ones'})"
        raise ConfigError(str(path), what, "resume with the same settings, or remove the checkpoint")
    for weights in (content["model"], content["state"]["best_model"]):
        check_fits(path, model, weights)
    _check_origin(path, origin, content)
    before = copy.deepcopy(optimizer.state_dict())
    try:
        stored = dict(content["state"])
        stored["history"] = [Epoch(**e) for e in stored["history"]]
        state = RecoveryState(**stored)
        Evaluation(**state.best_validation)
        if not 0 <= state.best_epoch <= state.epoch <= config.rounds or len(state.history) != state.epoch + 1:
            raise ValueError("its epochs don't add up")
    except (ValueError, TypeError, KeyError) as error:
        raise refusal(path, f"damaged: {first_line(error)}") from error
    try:
        optimizer.load_state_dict(content["optimizer"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"its optimiser trained other parameters: {first_line(error)}"
        raise ArtifactError(str(path), what, "freeze the same parameters as before") from error
    if not _fits(optimizer):
        optimizer.load_state_dict(before)
        what = "its optimiser holds tensors of other shapes, or numbers that are not finite"
        raise refusal(path, what)
    model.load_state_dict(content["model"])
    return state, Origin(**content["origin"])


def _check_origin(path: Path, origin: Origin, content: Mapping[str, Any]) -> None:
    """An interrupted run leaves its best weights in the model: these, the last and the first ones are its own."""
    try:
        first = Origin(**content["origin"])
    except TypeError as error:
        raise refusal(path, f"damaged: {first_line(error)}") from error
    own = (first.weights, tree_digest(content["model"]), tree_digest(content["state"]["best_model"]))
    weights = first.weights if origin.weights in own else origin.weights
    there = {"model": first.weights, "teacher": first.teacher, "data": first.data}
    check_same_run(path, there, {"model": weights, "teacher": origin.teacher, "data": origin.data})


def _fits(optimizer: torch.optim.Optimizer) -> bool:
    """True if what the optimiser remembers of each parameter has its shape and is finite."""
    kept = [(p, value) for p, held in optimizer.state.items() for value in held.values() if isinstance(value, Tensor)]
    return all(v.shape in (p.shape, torch.Size([])) and bool(torch.isfinite(v).all()) for p, v in kept)
