"""What a model's answer is, whatever it is wrapped in, and the losses of classifiers and language models on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from prunus.errors import DataError

IGNORED = -100
"""Label of positions that are not judged."""


def main_output(result: Any) -> Tensor:
    """The tensor that answers: the result itself, its `logits`, or its first tensor (transformers' outputs, tuples).

    Raises:
        DataError: there is none.
    """
    if isinstance(result, Tensor):
        return result
    logits = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    parts = result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple | list) else ()
    for part in parts:
        if isinstance(part, Tensor):
            return part
    raise DataError(
        "outputs", f"no tensor in a {type(result).__name__}", "return logits, or pass a loss_fn of your own"
    )


def on_main_output(loss_fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss function, given what a model returns instead of its logits."""

    def loss(outputs: Any, labels: Tensor, **options: Any) -> Tensor:
        return loss_fn(main_output(outputs), labels, **options)

    return loss


def classes_last(outputs: Tensor, labels: Tensor) -> Tensor:
    """Logits with the classes in the last dimension, the others as the labels have them.

    Args:
        outputs: [*labels.shape, C], or [B, C, ...] as images have it.
        labels: int64 [B] or [B, ...].

    Raises:
        DataError: neither fits.
    """
    if outputs.shape[:-1] == labels.shape:
        return outputs
    if outputs.dim() == labels.dim() + 1 and outputs.shape[:1] + outputs.shape[2:] == labels.shape:
        return outputs.movedim(1, -1)
    found = f"outputs {list(outputs.shape)} for labels {list(labels.shape)}"
    raise DataError("outputs", found, "give one row of logits per label, or a loss_fn of your own")


def cross_entropy(outputs: Any, labels: Tensor, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of class or token logits in nats; positions with label -100 do not count.

    Args:
        outputs: what the model returned; see `main_output` and `classes_last`.
        labels: int64 [B] or [B, ...].
        reduction: `mean` over the labels that count, `sum`, or `none`.
        label_smoothing: as torch's.

    Raises:
        DataError: outputs without a tensor, or of a shape that does not fit.
    """
    logits = classes_last(main_output(outputs), labels).flatten(0, -2)
    return F.cross_entropy(
        logits, labels.flatten(), reduction=reduction, label_smoothing=label_smoothing, ignore_index=IGNORED
    )
