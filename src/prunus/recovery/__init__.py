"""Accuracy back: fine-tuning, tuning between stages, batch norm's statistics."""

from prunus.recovery.batchnorm import reestimate_batch_norm, reestimate_if_better
from prunus.recovery.config import FinetuneConfig
from prunus.recovery.finetuning import FinetuneResult, finetune

__all__ = [
    "FinetuneConfig",
    "FinetuneResult",
    "finetune",
    "reestimate_batch_norm",
    "reestimate_if_better",
]
