"""What a smaller network loses against the dense one, example by example, both asked in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunus.data.batches import Loader, forward
from prunus.data.losses import IGNORED, classes_last, main_output, mean_of
from prunus.errors import ConfigError, DataError
from prunus.runtime.arguments import examples_in
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision, to_device, widened
from prunus.runtime.processes import model_device

Metric = Literal["accuracy", "agreement", "loss"]
NEEDED = "give validation batches of (inputs, targets), or promise agreement, which needs none"


def counted(loader: Loader, metric: Metric) -> tuple[int, bool]:
    """Examples in one pass, and whether each is judged as a whole; every batch is looked at.

    Raises:
        ConfigError: there are no labels that the metric could use.
    """
    total, whole = 0, metric != "loss"
    with torch.random.fork_rng(devices=[]):
        for inputs, targets in loader:
            if metric == "accuracy" and not _classes(targets):
                what = "accuracy is judged by class labels, and the held-out batches have none"
                raise ConfigError("validation", what, NEEDED)
            if metric == "loss" and targets is None:
                raise ConfigError("validation", "the held-out batches have no targets", NEEDED)
            whole = whole and not (_classes(targets) and targets.dim() > 1)
            total += examples_in(inputs)
    return total, whole


def losses_of(
    dense: nn.Module,
    smaller: nn.Module,
    loader: Loader,
    metric: Metric,
    *,
    relative: bool = False,
    loss_fn: Callable[..., Any] | None = None,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the smaller network loses on every example, in eval mode and fp32 as far as the networks are.

    Args:
        dense: the network compared with, on the device where it lies.
        smaller: the network judged.
        loader: examples; several labels of one example are averaged, examples without any are left out.
        metric: `accuracy`: 1 - right; `agreement`: 1 - same answer as the dense network; `loss`: the loss.
        relative: less what the dense network loses.
        loss_fn: for `loss`: mean loss of a batch, called on one example at a time.

    Returns:
        float64 [n].

    Raises:
        DataError: NaN or infinity in outputs, or none that the metric can judge.
    """
    device, found = model_device(dense), []
    with torch.no_grad(), full_precision(), eval_mode(dense), eval_mode(smaller), torch.random.fork_rng(devices=[]):
        for batch in loader:
            inputs, targets = to_device(batch, device)
            first, second = (_finite(main_output(widened(forward(net, inputs)))) for net in (dense, smaller))
            if metric == "loss":
                lost = _each_loss(second, targets, loss_fn)
                lost = lost - _each_loss(first, targets, loss_fn) if relative else lost
            else:
                lost = _lost_answers(first, second, targets, metric, relative)
            found.append(lost.double().cpu().numpy())
    return np.concatenate(found)


def _lost_answers(first: Tensor, second: Tensor, targets: Any, metric: Metric, relative: bool) -> Tensor:
    """Share of an example's answers that are lost [B]."""
    labels = targets if _classes(targets) and (metric == "accuracy" or targets.dim() > 1) else None
    answers = [_top(outputs, labels) for outputs in (first, second)]
    judged = torch.ones_like(answers[0], dtype=torch.bool) if labels is None else labels != IGNORED
    if metric == "agreement":
        lost = torch.ne(*answers).double()
    else:
        wrong = [torch.ne(answer, targets).double() for answer in answers]
        lost = wrong[1] - wrong[0] if relative else wrong[1]
    shares = (lost * judged).flatten(1).sum(1) if lost.dim() > 1 else lost * judged
    number = judged.flatten(1).sum(1) if lost.dim() > 1 else judged.long()
    return shares[number > 0] / number[number > 0]


def _top(outputs: Tensor, labels: Tensor | None) -> Tensor:
    """Most probable classes, in the shape of the labels, or [B]."""
    if labels is None and outputs.dim() != 2:
        what = f"outputs {list(outputs.shape)} do not say which dimension holds the classes"
        raise DataError("outputs", what, "give labels, one for each answer, in the validation batches")
    logits = outputs if labels is None else classes_last(outputs, labels)
    if logits.shape[-1] < 2:
        raise DataError("outputs", "a single number per answer has no most probable class", "promise a loss instead")
    return logits.argmax(-1)


def _each_loss(outputs: Tensor, targets: Any, loss_fn: Callable[..., Any] | None) -> Tensor:
    """Loss of every example [B]."""
    if loss_fn is None or not isinstance(targets, Tensor):
        raise ConfigError("loss_fn", "a loss is promised of none that could be called", "give loss_fn and targets")
    loss = mean_of(loss_fn)
    return torch.stack([loss(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(outputs))])


def _classes(targets: Any) -> bool:
    return isinstance(targets, Tensor) and targets.dim() > 0 and not targets.is_floating_point()


def _finite(outputs: Tensor) -> Tensor:
    if not bool(torch.isfinite(outputs).all()):
        what = "NaN or infinity in the outputs for held-out examples"
        raise DataError("validation", what, "check the inputs, and the weights of the model, for NaN")
    return outputs
