"""Whether data fit a network, found out on two examples before any work."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.datasets import DataSource
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.losses import IGNORED, main_output
from prunus.errors import DataError, PruneError, first_line
from prunus.runtime.arguments import tensors_in
from prunus.runtime.calling import call
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision, to_device
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
        fix = "prepare them as in training; of pictures by --load size=..., channels=... (prunus.data.Reading)"
        raise DataError(where, what, fix) from error
    if isinstance(data.loss_fn, DenseOutputs):
        return
    labels = [found for part in (data.train, data.validation, data.test) if (found := _labels(part)) is not None]
    if not labels:
        return
    outputs = _classes_of(main_output(answer), labels[0])
    if outputs is None:
        return
    for of_part in labels:
        judged = of_part[of_part != IGNORED]
        if len(judged) and not 0 <= int(judged.min()) <= int(judged.max()) < outputs:
            what = f"labels from {int(judged.min())} to {int(judged.max())}, and the network has {outputs} outputs"
            fix = f"number the classes from 0, as the outputs are; {IGNORED} is for what is not judged"
            raise DataError(where, what, fix)
    if data.classes and len(data.classes) < outputs:
        told = f"{len(data.classes)} folders of classes, and the network has {outputs} outputs"
        order = "classes are numbered in the order of their names; see that the network's outputs are"
        warnings.warn(f"{where}: {told}: {order}", RuntimeWarning, stacklevel=3)


def _labels(part: Any) -> Tensor | None:
    """Of every example of a part, where they are known without reading it."""
    labels = getattr(part, "labels", None)
    known = isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.numel() > 0
    return labels if known else None


def _classes_of(outputs: Tensor, labels: Tensor) -> int | None:
    """How many there are in the outputs for labels [N] or [N, ...]; None where that can't be told."""
    if outputs.dim() != labels.dim() + 1:
        return None
    inner = tuple(labels.shape[1:])
    if tuple(outputs.shape[1:-1]) == inner:
        return outputs.shape[-1]
    return outputs.shape[1] if tuple(outputs.shape[2:]) == inner else None
