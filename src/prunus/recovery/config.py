"""The settings of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunus.runtime.fields import as_seed, check_fields
from prunus.runtime.precision import Precision
from prunus.runtime.ranges import BelowOne, Count, Fraction, NonNegative, Positive


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of `finetune`, checked on creation.

    Attributes:
        epochs: passes over the training split, at least 1; the schedule is stretched over them.
        lr: peak learning rate. 0.02 suits SGD on a trained network; AdamW wants about 1e-3.
        momentum: of SGD (Nesterov), or AdamW's first beta; in [0, 1).
        weight_decay: on matrices and kernels alone.
        optimizer: `sgd` or `adamw`.
        warmup: fraction of all steps with a rising learning rate, in [0, 1).
        label_smoothing: in [0, 1).
        distillation: weight of the teacher's soft targets against the labels, in [0, 1]; only with a teacher.
        temperature: of the soft targets, above 0.
        patience: epochs without a better validation result before it stops; None never stops early.
        batch_norm: `eval` normalises by the running statistics and leaves them alone, for weights that are adapted to
            them or data too few to find new ones; `train` as usual; `auto` is `train`, but `compress` makes it `eval`
            where it has seen that new statistics harm.
        precision: `auto` uses bf16 where training is faster in it.
        channels_last: `auto` uses it on GPUs and on CPUs with AMX, if the model runs in it.
        clip_grad_norm: largest norm of all gradients together; None leaves them.
        batch_size: examples per step, over all processes together; a last batch that is not full is left out.
        seed: of order, augmentation and dropout.

    Raises:
        ConfigError: a setting outside its range.
    """

    epochs: Count = 10
    lr: Positive = 0.02
    momentum: BelowOne = 0.9
    weight_decay: NonNegative = 5e-4
    optimizer: Literal["sgd", "adamw"] = "sgd"
    warmup: BelowOne = 0.05
    label_smoothing: BelowOne = 0.0
    distillation: Fraction = 0.5
    temperature: Positive = 4.0
    patience: Count | None = None
    batch_norm: Literal["auto", "train", "eval"] = "auto"
    precision: Precision = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    clip_grad_norm: Positive | None = None
    batch_size: Count = 128
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        as_seed(self.seed)

    def patience_or(self, default: int) -> int:
        """The patience, or `default` where there is none."""
        return default if self.patience is None else self.patience
