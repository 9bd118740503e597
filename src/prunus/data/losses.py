"""What a model's answer is, whatever it is wrapped in, and the losses of classifiers and language models on it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import DataError

Outputs = Literal["main", "all"]
"""What a loss and a metric get of a model's answer: the tensor that counts (`main_output`), or all of it."""
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

    @wraps(loss_fn, updated=())  # so that it still says which options it takes
    def loss(outputs: Any, labels: Any, **options: Any) -> Tensor:
        return loss_fn(main_output(outputs), labels, **options)

    return loss


def mean_of(loss_fn: Callable[..., Any]) -> Callable[[Any, Any], Tensor]:
    """The mean loss of a batch from a loss as people write it.

    A module with a `reduction` is asked for the mean; of a loss per example the mean is taken; any other function's
    answer is taken for a mean.

    Raises:
        DataError: (when called) it returns no tensor.
    """
    other = isinstance(loss_fn, nn.Module) and getattr(loss_fn, "reduction", None) in ("sum", "none")
    chosen = _reduced(loss_fn, "mean") if other else loss_fn

    def loss(outputs: Any, targets: Any) -> Tensor:
        return _tensor(chosen(outputs, targets)).mean()

    return loss


def sum_of(loss_fn: Callable[..., Any]) -> Callable[[Any, Any, int], Tensor]:
    """The summed loss of a batch of so many examples: `loss(outputs, targets, examples)`.

    A module with a `reduction`, or a function with such an argument, is asked for the sum; any other function's single
    number is taken for the mean over the examples.

    Raises:
        DataError: (when called) it returns no tensor.
    """
    module = isinstance(loss_fn, nn.Module) and hasattr(loss_fn, "reduction")
    chosen = _reduced(loss_fn, "sum") if module else loss_fn
    asks = {"reduction": "sum"} if not module and _takes_reduction(loss_fn) else {}

    def loss(outputs: Any, targets: Any, examples: int) -> Tensor:
        found = _tensor(chosen(outputs, targets, **asks))
        return found.sum() if module or asks or found.dim() else found * examples

    return loss


def own_loss(outputs: Any, targets: Any) -> Tensor:
    """The loss that a model computed itself from labels among its inputs, as transformers' models do.

    Raises:
        DataError: its outputs hold none.
    """
    found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if isinstance(found, Tensor):
        return found
    raise DataError("loss_fn", f"none is given, and a {type(outputs).__name__} holds no loss", "give a loss_fn")


def _reduced(loss_fn: Any, how: str) -> Any:
    """The same loss module, its parameters and settings shared, with another reduction."""
    again = copy.copy(loss_fn)
    again.reduction = how
    return again


def _takes_reduction(loss_fn: Callable[..., Any]) -> bool:
    target = loss_fn.forward if isinstance(loss_fn, nn.Module) else loss_fn
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return False
    return "reduction" in parameters


def _tensor(found: Any) -> Tensor:
    if isinstance(found, Tensor):
        return found
    fix = "return one tensor, such as sum(losses.values()) of a dict of losses"
    raise DataError("loss_fn", f"it returned a {type(found).__name__}", fix)


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
    what = f"outputs {list(outputs.shape)} for labels {list(labels.shape)}"
    raise DataError("outputs", what, "give one row of logits per label, or a loss_fn of your own")


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
