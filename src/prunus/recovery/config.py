"""The settings of fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from prunus.runtime.fields import as_seed, check_fields
from prunus.runtime.precision import Precision
from prunus.runtime.ranges import BelowOne, Count, Fraction, NonNegative, Positive

RATES = {"sgd": 0.02, "adamw": 0.001}
"""Peak learning rates for a network that has to be trained back."""
BLOCKS = 10.0
"""Weight of the outputs of blocks beside the divergence of the answers."""
DIGITS = 6
"""Of a number of epochs or steps: 0.7 times ten is seven."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of `finetune`, checked on creation.

    Attributes:
        epochs: passes over the training split, a fraction too: 0.1 takes a tenth of its batches (at least one). The
            schedule is stretched over all steps, and what is there at the end of a pass, and at the end, is judged.
        lr: peak learning rate. `auto` is 0.02 for SGD and 0.001 for AdamW; `compress` takes less where epochs are few
            and the network as it came is near the dense one, as a repaired one is: see `near`; and a tenth where that
            diverges.
        momentum: of SGD (Nesterov), or AdamW's first beta; in [0, 1).
        weight_decay: on matrices and kernels alone.
        optimizer: `sgd` or `adamw`.
        warmup: fraction of all steps with a rising learning rate, in [0, 1).
        label_smoothing: in [0, 1).
        distillation: weight of the teacher's soft targets against the labels, in [0, 1]; only with a teacher.
        temperature: of the soft targets, above 0.
        blocks: weight of the squared distance between the outputs of blocks that both networks have and the teacher's,
            in units of their variance (`recovery/blocks.py`); only with a teacher and distillation. `auto` is 0, but
            10 in `compress` where the network as it came is near the dense one.
        patience: epochs without a better validation result before it stops; None never stops early.
        batch_norm: `train` as usual; `compensated` the same, after new statistics whose difference scale and shift take
            up (`compensate_batch_norm`), for weights that are adapted to the old ones, as repaired ones are; `eval`
            normalises by the running statistics and leaves them alone, for data too few to find new ones, and where
            batch norms can't compensate; `auto` is `train`, but `compress` makes it `compensated` where it has seen
            that new statistics harm.
        precision: `auto` uses bf16 where training is faster in it.
        channels_last: `auto` uses it on GPUs and on CPUs with AMX, if the model runs in it.
        clip_grad_norm: largest norm of all gradients together; None leaves them.
        batch_size: examples per step, over all processes together; a last batch that is not full is left out.
        seed: of order, augmentation and dropout.

    Raises:
        ConfigError: a setting outside its range.

    Example:
        >>> prunus.FinetuneConfig(epochs=5, optimizer="adamw").peak
        0.001
    """

    epochs: Positive = 10
    lr: Positive | Literal["auto"] = "auto"
    momentum: BelowOne = 0.9
    weight_decay: NonNegative = 5e-4
    optimizer: Literal["sgd", "adamw"] = "sgd"
    warmup: BelowOne = 0.05
    label_smoothing: BelowOne = 0.0
    distillation: Fraction = 0.5
    temperature: Positive = 4.0
    blocks: NonNegative | Literal["auto"] = "auto"
    patience: Count | None = None
    batch_norm: Literal["auto", "train", "compensated", "eval"] = "auto"
    precision: Precision = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    clip_grad_norm: Positive | None = None
    batch_size: Count = 128
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        as_seed(self.seed)

    @property
    def peak(self) -> float:
        """The learning rate, in numbers."""
        return RATES[self.optimizer] if self.lr == "auto" else self.lr

    @property
    def block_weight(self) -> float:
        """The weight of blocks, in numbers."""
        return 0.0 if self.blocks == "auto" else self.blocks

    def near(self) -> FinetuneConfig:
        """For a network that has little to win and much to forget: what is `auto` keeps it near.

        The learning rate grows with the epochs, and the outputs of blocks are distilled.

        Example:
            >>> [round(FinetuneConfig(epochs=e).near().peak, 4) for e in (0.01, 0.1, 1)]
            [0.005, 0.01, 0.02]
        """
        rate = RATES[self.optimizer] * min(1.0, self.epochs**0.3)
        return replace(
            self,
            lr=rate if self.lr == "auto" else self.lr,
            blocks=BLOCKS if self.blocks == "auto" else self.blocks,
        )

    @property
    def rounds(self) -> int:
        """Passes over the training split, the last of which may be a part of one."""
        return math.ceil(round(self.epochs, DIGITS))

    def steps(self, batches: int) -> int:
        """All steps, where so many batches are a pass."""
        return math.ceil(round(self.epochs * batches, DIGITS))

    def patience_or(self, default: int) -> int:
        """The patience, or `default` where there is none."""
        return default if self.patience is None else self.patience
