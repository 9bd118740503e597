"""Recovery: a short fine-tune of the smaller model, taught by the dense one, everything chosen on the validation split.

Runs unchanged on one process or on those that `accelerate launch` or `torchrun` started. Settings are in
`FinetuneConfig`; the learning rate rises linearly and falls along a cosine, step by step.
"""

from __future__ import annotations

import inspect
import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunus.data.batches import Loader, Splits, as_batches
from prunus.data.datasets import DataSource, read_by_number
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.evaluation import Evaluation, evaluate
from prunus.data.given import source_of
from prunus.data.losses import own_loss
from prunus.data.passes import Loop, Position
from prunus.data.shared import SharedLoader
from prunus.data.sharing import Shares
from prunus.errors import ConfigError, DataError
from prunus.files.atomic import check_file
from prunus.files.stagefile import Checkpoint
from prunus.files.steps import Stateful, Steps
from prunus.recovery.compensation import compensate_batch_norm
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.objective import Objective, distillation_loss
from prunus.recovery.optimizer import learning_rate_factor, make_optimizer
from prunus.recovery.placement import placed, resident
from prunus.recovery.state import Epoch, RecoveryState, load_state, origin_of, save_state
from prunus.runtime import stopping
from prunus.runtime.arguments import examples_in
from prunus.runtime.calling import call
from prunus.runtime.copies import copied
from prunus.runtime.entry import entry
from prunus.runtime.fields import check_kind
from prunus.runtime.modes import hold_statistics_
from prunus.runtime.precision import autocast, fastest
from prunus.runtime.processes import (
    accelerator,
    average_over_ranks_,
    checked_by_first,
    gathered_objects,
    prepared,
    running_statistics,
    training_device,
    unprepare_,
)
from prunus.runtime.progress import progress_bar
from prunus.runtime.seeds import seeded, start_at
from prunus.runtime.training import Training

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Epoch", "FinetuneConfig", "FinetuneResult", "distillation_loss", "finetune", "learning_rate_factor"]

STATISTICS = 16
"""Batches that new statistics of batch norms are taken from."""


@dataclass(frozen=True)
class FinetuneResult:
    """What fine-tuning made.

    Attributes:
        model: the given model, with the weights of the best epoch, in eval mode.
        history: one entry per epoch; entry 0 is the model as it came.
        best_epoch: the epoch with the best validation score (lowest loss among equals); 0 if none improved.
        validation: measured at that epoch.
        stopped_early: True if patience ran out.
        precision: `bf16` or `fp32`, whichever was used.
        channels_last: whether the weights lay channels-last during training.
        processes: number of processes.
        seconds: wall-clock time, without what an earlier, interrupted run took.
    """

    model: nn.Module = field(repr=False)
    history: tuple[Epoch, ...] = field(repr=False)
    best_epoch: int
    validation: Evaluation
    stopped_early: bool
    precision: str
    channels_last: bool
    processes: int
    seconds: float


@entry()
def finetune(
    model: nn.Module,
    data: DataSource | Splits | Mapping[str, Any] | tuple[Any, ...] | list[Any],
    config: FinetuneConfig | None = None,
    *,
    teacher: nn.Module | None = None,
    progress: bool = True,
    checkpoint: Path | Checkpoint | None = None,
    resume: bool = False,
) -> FinetuneResult:
    """Train `model` in place and leave it with the weights that were best on the validation split.

    Frozen parameters stay as they are. The same seed on the same number of CPU processes gives the same weights, bit
    for bit, interrupted and resumed or not. The model is trained on accelerate's device and comes back to its own.

    Args:
        model: whose outputs the loss of the data understands.
        data: where to learn and where to choose, in any form that `prunus.data.source_of` takes, loaders too; the test
            split is not read. The epoch is chosen by the data's metric. With `DenseOutputs()` for its loss no
            label is looked at: the teacher's answers alone are learned, whatever `distillation` says, and the epoch is
            chosen by agreement with it.
        config: the settings; None takes the defaults.
        teacher: the dense model, to distil from (see `FinetuneConfig.distillation`); it isn't changed.
        progress: show a bar where there is a terminal.
        checkpoint: file to write after every epoch, whole at any time; a `Checkpoint` says too whether to go on from
            it, and with its `steps` an epoch under way is kept as well.
        resume: go on from the checkpoint if it is there.

    Returns:
        The model with the history of its recovery.

    Raises:
        ConfigError: settings that don't go together, or a checkpoint of other settings.
        ArtifactError: a checkpoint that is damaged or of another architecture, or cannot be written.
        DataError: NaN or infinity in loss or gradients; the model then has its best weights so far.

    Example:
        >>> from prunus.data import ArrayDataset, DataSource
        >>> from prunus.recovery import FinetuneConfig, finetune
        >>> parts = [ArrayDataset(torch.randn(n, 8), torch.randint(4, (n,))) for n in (64, 32, 32)]
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
        >>> config = FinetuneConfig(epochs=1, batch_size=32, distillation=0.0)
        >>> recovered = finetune(net, DataSource("noise", *parts, num_classes=4), config, progress=False)
        >>> len(recovered.history), recovered.model is net  # entry 0 is the model as it came
        (2, True)
    """
    config = config or FinetuneConfig()
    steps = None
    if isinstance(checkpoint, Checkpoint):
        steps, resume = checkpoint.steps, resume or checkpoint.resume
        checkpoint = Path(checkpoint.path)
    data = source_of(data, model)
    if isinstance(data.loss_fn, DenseOutputs):
        config = replace(config, distillation=1.0)
    _check(model, data, config, teacher, checkpoint, resume)
    began = time.perf_counter()
    start_at(config.seed, alike=True)  # loaders that shuffle are looked at before the first epoch too
    with accelerator() as processes, placed(model, teacher, data, config, processes) as channels_last:
        if checkpoint is not None:
            checked_by_first(lambda: check_file(checkpoint))
        recovery = _Recovery(model, data, config, teacher, processes, checkpoint, steps)
        state = recovery.run(resume, progress)
        result = FinetuneResult(
            model=model,
            history=tuple(state.history),
            best_epoch=state.best_epoch,
            validation=Evaluation(**state.best_validation),
            stopped_early=state.epoch < config.rounds,
            precision=recovery.precision,
            channels_last=channels_last,
            processes=processes.num_processes,
            seconds=time.perf_counter() - began,
        )
    return result


def _check(
    model: nn.Module,
    data: DataSource,
    config: FinetuneConfig,
    teacher: nn.Module | None,
    checkpoint: Path | None,
    resume: bool,
) -> None:
    check_settings(config, data)
    if teacher is None and isinstance(data.loss_fn, DenseOutputs):
        what = "without labels the teacher is all there is to learn from"
        raise ConfigError("teacher", what, "pass a copy of the dense model, or data with a loss on labels")
    if teacher is model:
        raise ConfigError("teacher", "it is the model itself", "pass a copy of the dense model")
    if resume and checkpoint is None:
        raise ConfigError("resume=True", "no checkpoint to go on from", "pass checkpoint=PATH")
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("model", "every parameter is frozen", "set requires_grad_(True) on what may be trained")


def check_settings(config: FinetuneConfig, data: DataSource) -> None:
    """Raise ConfigError if these are no settings and no data, or the loss can't take what the settings ask of it."""
    check_kind("data", data, DataSource, "DataSource(name, train, validation, test, classes) of prunus.data")
    check_kind("config", config, FinetuneConfig, "FinetuneConfig(epochs=...) of prunus.recovery")
    if config.label_smoothing and "label_smoothing" not in inspect.signature(data.loss_fn).parameters:
        what = f"the loss function {data.loss_fn} has no such argument"
        raise ConfigError(f"label_smoothing={config.label_smoothing}", what, "use 0, or a loss that takes it")


@dataclass(frozen=True, kw_only=True)
class _Clipped(Training):
    """Steps whose gradients accelerate has averaged, held to a norm; what is broken is seen in loss and norm at once.

    Attributes:
        processes: that share the work.
        max_norm: of all gradients together; None: any.
    """

    processes: Accelerator
    max_norm: float | None

    def check(self, objective: Tensor, inputs: Any, where: str) -> None:
        """After the backward pass, with the norm: the device is waited for once in a step."""

    def agree_(self, loss: Tensor, where: str) -> Tensor:
        limit = math.inf if self.max_norm is None else self.max_norm
        norm = nn.utils.clip_grad_norm_(self.trained, limit)
        seen = torch.as_tensor(self.processes.reduce(loss.detach(), "mean"))
        if not bool(torch.isfinite(seen + norm)):
            raise DataError(
                where,
                f"loss {float(seen):.3g}, gradient norm {float(norm):.3g}; the model has its best weights so far",
                "lower lr, set clip_grad_norm, use precision='fp32', or look for NaN in the data",
            )
        return seen


class _Recovery:
    """One fine-tuning run: the pieces that every step needs."""

    def __init__(
        self,
        model: nn.Module,
        data: DataSource,
        config: FinetuneConfig,
        teacher: nn.Module | None,
        processes: Accelerator,
        checkpoint: Path | None,
        kept: Steps | None = None,
    ) -> None:
        self.model, self.data, self.config, self.processes = model, data, config, processes
        self.checkpoint, self.kept = checkpoint, kept
        self.origin = None if checkpoint is None else origin_of(model, teacher, (data.train, data.validation))
        self.device = training_device(processes)
        self.teacher = teacher.eval() if teacher is not None and config.distillation else None
        self.precision = fastest(self.device, config.precision)
        self.optimizer = make_optimizer(model, config)
        self.held = config.batch_norm == "eval"
        self.batches = self._batches()
        self.validation = resident(data.validation, self.device)
        self.steps = 0
        # Last, since it watches the networks until it is closed.
        self.objective = Objective(data, config, self.teacher, self.device, self.precision, model)

    def _batches(self) -> Loader:
        data, size = self.data, self.config.batch_size
        train = resident(data.train, self.device)
        if read_by_number(train):
            size = min(size, len(train))  # type: ignore[arg-type]
        batches = replace(data, train=train).batches(
            size,
            seed=self.config.seed,
            drop_last=True,
            rank=self.processes.process_index,
            world=self.processes.num_processes,
        )
        return as_batches(batches, self.model, data.example_inputs, own_loss=data.loss_fn is own_loss)

    def run(self, resume: bool, progress: bool) -> RecoveryState:
        """All epochs; the model ends with its best weights."""
        state, wrapped = None, self.model
        try:
            wrapped = prepared(self.model, self.processes)
            state = self._start(resume)
            self.steps = min(gathered_objects(len(self.batches)))  # of streams every process may have its own number
            remaining = max(0, self.config.steps(self.steps) - state.epoch * self.steps)
            bars = progress_bar("fine-tuning", remaining, progress)
            with seeded(self.config.seed, self.device), bars as bar:
                training = _Clipped(
                    wrapped, self.precision, bar, self.optimizer,
                    processes=self.processes, max_norm=self.config.clip_grad_norm,
                    weighted=isinstance(self.batches.data, Shares | SharedLoader),
                )  # fmt: skip
                rounds = self.config.rounds
                if self.kept is not None:
                    stopping.step_begins()
                while state.epoch < rounds and state.waited < self.config.patience_or(rounds):
                    self._epoch(training, state)
                    stopping.check()
        finally:
            stopping.steps_end()
            self.objective.close()
            unprepare_(self.model, wrapped, self.processes)
            self.optimizer.zero_grad(set_to_none=True)
            if state is not None:
                self.model.load_state_dict(state.best_model)
        return state

    def _start(self, resume: bool) -> RecoveryState:
        if resume and self.checkpoint is not None and self.checkpoint.is_file():
            # Ranks may hold parts of the data each; the first one's is what was written down.
            checked_by_first(self._resume)
            return self._resume()
        first = self._evaluate()
        state = RecoveryState(0, 0, 0, {}, vars(first).copy(), [])
        state.best_model = _copied(self.model)
        if self.config.batch_norm == "compensated":
            self.held = not compensate_batch_norm(self.model, self.batches, num_batches=STATISTICS)
        state.history.append(Epoch(0, 0.0, math.nan, first.score, first.loss))
        return state

    def _resume(self) -> RecoveryState:
        assert self.checkpoint is not None
        assert self.origin is not None
        state, self.origin = load_state(self.checkpoint, self.model, self.optimizer, self.config, self.origin)
        self.objective.measure_by(state.spread)
        if self.config.batch_norm == "compensated":
            self.held = not compensate_batch_norm(copied(self.model), self.batches, num_batches=1)
        if state.position and self.processes.num_processes == 1:
            Position(self.batches).load_state_dict(state.position)
        return state

    def _epoch(self, training: _Clipped, state: RecoveryState) -> None:
        number = state.epoch + 1
        # Seeded anew every epoch: a resumed run needs no saved generator.
        start_at(self.config.seed + 7919 * number)
        self.model.train()
        if self.held:
            hold_statistics_(self.model)
        before, all_steps = state.epoch * self.steps, self.config.steps(self.steps)
        steps = min(self.steps, all_steps - before)
        values: dict[str, Any] = {"total": torch.zeros((), device=self.device, dtype=torch.float32)}
        parts: dict[str, Stateful] = {"model": self.model, "optimizer": self.optimizer, "objective": self.objective}
        parts["pieces"] = training.pieces
        origin = {
            "epoch": str(number),
            "settings": repr(self.config),
            **({} if self.origin is None else vars(self.origin)),
        }
        loop = Loop(self.kept, "epoch", origin, self.batches, parts, values)
        training.bar.skip(loop.step)
        for step, batch in itertools.islice(loop.within(number), steps - loop.step):
            factor = learning_rate_factor(before + step, all_steps, self.config.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.peak * factor
            where = f"fine-tuning, epoch {number}, step {step + 1}"
            values["total"] += training.step(batch, partial(self._weighted_loss, training.model), where)
        average_over_ranks_(running_statistics(self.model))
        measured = self._evaluate()
        state.epoch, state.spread, state.position = number, self.objective.spread, Position(self.batches).state_dict()
        state.history.append(
            Epoch(
                number,
                self.optimizer.param_groups[0]["lr"],
                float(values["total"]) / steps,
                measured.score,
                measured.loss,
            )
        )
        state.history[-1].tell()
        self._keep_best(state, measured)
        training.bar.describe(f"epoch {number}: {measured} on validation")
        if self.checkpoint is not None and self.origin is not None and self.processes.is_main_process:
            save_state(self.checkpoint, state, self.model, self.optimizer, self.config, self.origin)
        if self.kept is not None:
            self.kept.forget("epoch")

    def _keep_best(self, state: RecoveryState, measured: Evaluation) -> None:
        best = state.best_validation
        state.waited += 1
        if measured.better_than(Evaluation(**best)):
            state.best_epoch, state.waited = state.epoch, 0
            state.best_validation, state.best_model = vars(measured).copy(), _copied(self.model)

    def _weighted_loss(self, wrapped: nn.Module, x: Any, y: Any) -> Tensor:
        with self.objective.ours:
            answer = call(wrapped, x)
        with autocast(self.device, "fp32"):
            loss = self.objective(answer, x, y)
        batches = self.batches.data
        if not isinstance(batches, Shares | SharedLoader):
            return loss
        whole = batches.batch_size if isinstance(batches, Shares) else batches.whole
        # Ranks may hold one example more or less; weighted so that the mean over ranks is the mean over examples.
        return loss * (examples_in(x) * self.processes.num_processes / whole)

    def _evaluate(self) -> Evaluation:
        data = self.data
        dense = self.teacher if isinstance(data.loss_fn, DenseOutputs) else None
        own: dict[str, Any] = {"metric": data.metric, "workers": data.workers, "outputs": data.outputs}
        return evaluate(self.model, self.validation, loss_fn=data.loss_fn, dense=dense, **own)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
