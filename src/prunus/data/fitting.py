"""Whether data fit a network, found out on two examples before any work."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.batches import as_batches, structure
from prunus.data.datasets import DataSource, batches_of
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.evaluation import Evaluation
from prunus.data.losses import IGNORED, cross_entropy, main_output, mean_of, on_main_output, own_loss
from prunus.errors import DataError, PruneError, first_line
from prunus.runtime.arguments import tensors_in
from prunus.runtime.calling import call
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import dtype_name, full_precision, to_device
from prunus.runtime.processes import model_device


def check_fits(model: nn.Module, data: DataSource) -> None:
    """Refuse data that the network can't take, or labels that it has no output for.

    Raises:
        DataError: one of these, naming sizes and labels.

    Warns:
        RuntimeWarning: the network has more outputs than there are folders of classes, so that they may be in another
            order than it has learned them in.
    """
    where, inputs = f"data {data.name!r}", data.example_inputs
    try:
        with eval_mode(model), torch.no_grad(), full_precision():
            answer: Any = call(model, to_device(inputs, model_device(model)))
    except PruneError:
        raise
    except Exception as error:
        shapes = ", ".join(str(list(t.shape)) for t in tensors_in(inputs))
        what = f"the network fails on examples of shape {shapes}: {first_line(error)}"
        if unlike := _unlike_types(model, inputs):
            what = f"its weights are {unlike[0]} and the examples {unlike[1]}: {first_line(error)}"
            raise DataError(where, what, "give the network in their type, such as model.float()") from error
        fix = "prepare them as in training; of pictures by --load size=..., channels=... (prunus.data.Reading)"
        raise DataError(where, what, fix) from error
    if isinstance(data.loss_fn, DenseOutputs):
        return
    _check_first(model, data, where)
    labels = [found for part in (data.train, data.validation, data.test) if (found := _labels(part)) is not None]
    if not labels:
        return
    outputs = _classes_of(main_output(answer), labels[0])
    if outputs is None:
        return
    for of_part in labels:
        _check_labels(of_part, outputs, where)
    if data.classes and len(data.classes) < outputs:
        told = f"{len(data.classes)} folders of classes, and the network has {outputs} outputs"
        order = "classes are numbered in the order of their names; see that the network's outputs are"
        warnings.warn(f"{where}: {told}: {order}", RuntimeWarning, stacklevel=3)


def learned_by(data: DataSource) -> Callable[..., Any] | None:
    """The loss as `prune` takes it: of whole answers; None for the model's own."""
    if data.loss_fn is own_loss:
        return None
    free = isinstance(data.loss_fn, DenseOutputs)
    return data.loss_fn if free or data.outputs == "all" else on_main_output(data.loss_fn)


def at_chance(found: Evaluation, data: DataSource) -> str | None:
    """What to look at where a network knows no more of the classes than chance does; None where it does.

    Args:
        found: of the dense network, on held-out examples.
        data: whose classes they are.
    """
    if found.metric != "accuracy" or found.against != "labels" or data.num_classes < 2:
        return None
    chance = 1 / data.num_classes
    spread = math.sqrt(chance * (1 - chance) / found.num_examples)
    if found.score / 100 > chance + 2 * spread:
        return None
    return (
        f"no better than chance ({100 * chance:.1f} %): are the weights loaded, and are size, mean, std and the order "
        "of the classes those of its training?"
    )


def _check_first(model: nn.Module, data: DataSource, where: str) -> None:
    """Refuse a first batch of which there is no loss, or whose labels the network has no output for."""
    given = batches_of(data.train, 2, workers=0)
    inputs, targets = as_batches(given, model, own_loss=data.loss_fn is own_loss).first()
    if any(t.is_floating_point() and not bool(torch.isfinite(t).all()) for t in tensors_in(inputs)):
        raise DataError(where, "NaN or infinity in the inputs of its first batch", "mend or leave out these examples")
    if targets is None:
        fix = "give pairs (inputs, targets), or learn from the network's own outputs: loss_fn=DenseOutputs()"
        raise DataError(where, "its batches have no targets", fix)
    with eval_mode(model), torch.no_grad(), full_precision():
        inputs, targets = to_device((inputs, targets), model_device(model))
        answer: Any = call(model, inputs)
    found = main_output(answer) if data.outputs == "main" and data.loss_fn is not own_loss else answer
    if data.loss_fn is cross_entropy and isinstance(targets, Tensor) and targets.is_floating_point():
        what = f"its targets are {structure(targets)}, and nothing says by which loss they are judged"
        raise DataError(where, what, "say it: DataSource(..., loss_fn=torch.nn.MSELoss(), metric=Metric(...))")
    classes = _classes_of(found, targets) if isinstance(found, Tensor) and _are_labels(targets) else None
    if classes is not None and data.loss_fn in (cross_entropy, own_loss):
        _check_labels(targets, classes, where)
    try:
        mean_of(data.loss_fn)(found, targets)
    except PruneError:
        raise
    except Exception as error:
        what = f"its loss fails on outputs {structure(found)} and targets {structure(targets)}: {first_line(error)}"
        raise DataError(where, what, "give the loss_fn that the network was trained with") from error


def _unlike_types(model: nn.Module, inputs: Any) -> tuple[str, str] | None:
    """Types of weights and examples, where these are floating-point numbers of different ones."""
    weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    given = next((t.dtype for t in tensors_in(inputs) if t.is_floating_point()), weights)
    if weights is None or given is None or weights == given:
        return None
    return dtype_name(weights), dtype_name(given)


def _check_labels(labels: Tensor, outputs: int, where: str) -> None:
    judged = labels[labels != IGNORED]
    if len(judged) and not 0 <= int(judged.min()) <= int(judged.max()) < outputs:
        what = f"labels from {int(judged.min())} to {int(judged.max())}, and the network has {outputs} outputs"
        fix = f"number the classes from 0, as the outputs are; {IGNORED} is for what is not judged"
        raise DataError(where, what, fix)


def _are_labels(targets: Any) -> bool:
    return isinstance(targets, Tensor) and targets.dtype == torch.int64 and targets.numel() > 0


def _labels(part: Any) -> Tensor | None:
    """Of every example of a part, where they are known without reading it."""
    labels = getattr(part, "labels", None)
    return labels if _are_labels(labels) else None


def _classes_of(outputs: Tensor, labels: Tensor) -> int | None:
    """How many there are in the outputs for labels [N] or [N, ...]; None where that can't be told."""
    if outputs.dim() != labels.dim() + 1:
        return None
    inner = tuple(labels.shape[1:])
    if tuple(outputs.shape[1:-1]) == inner:
        return outputs.shape[-1]
    return outputs.shape[1] if tuple(outputs.shape[2:]) == inner else None
