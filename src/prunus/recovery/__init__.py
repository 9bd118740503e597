"""Accuracy back: fine-tuning, tuning between stages, batch norm's statistics."""

from prunus.recovery.batchnorm import reestimate_batch_norm, reestimate_if_better
from prunus.recovery.compensation import compensate_batch_norm
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.finetuning import FinetuneResult, finetune

__all__ = [
    "FinetuneConfig",
    "FinetuneResult",
    "compensate_batch_norm",
    "finetune",
    "reestimate_batch_norm",
    "reestimate_if_better",
]
