"""Accuracy and loss of a model on data: fp32 unless bf16 is asked for by name, summed in fp64 over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus.data.batches import EveryNth, Loader, as_batches, forward
from prunus.data.datasets import DataSource, Part, batches_of
from prunus.data.dense_outputs import DenseOutputs, are_probabilities, class_rows, counted_rows
from prunus.data.losses import IGNORED, classes_last, cross_entropy, main_output, mean_of
from prunus.errors import ConfigError, DataError
from prunus.runtime.arguments import examples_in
from prunus.runtime.entry import entry
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import Precision, autocast, deciding, full_precision, to_device, widened
from prunus.runtime.processes import accelerator, distributed, model_device, summed, training_device
from prunus.runtime.training import check_loss


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        accuracy: top-1, percent; against the dense network, how often both put the same class first.
        loss: mean over the same; of a language model, nats per token. Against the dense network, KL(dense || model).
        num_examples: how many labels were judged, over all ranks: one per example, or every position with a label.
        against: `labels`, or the answers of the `dense` network.
    """

    accuracy: float
    loss: float
    num_examples: int
    against: Literal["labels", "dense"] = "labels"

    @property
    def measure(self) -> str:
        """`accuracy`, or `agreement` where no label was looked at."""
        return "accuracy" if self.against == "labels" else "agreement"

    def __str__(self) -> str:
        if self.against == "labels":
            return f"{self.accuracy:.2f} %, loss {self.loss:.4f}"
        return f"{self.accuracy:.2f} % agreement, divergence {self.loss:.4f}"


def metrics_of(judged: Mapping[str, Evaluation]) -> dict[str, float]:
    """Accuracies (or agreements) and losses by stage, rounded, as a model card shows them."""
    metrics = {f"{found.measure} {name} (%)": round(found.accuracy, 2) for name, found in judged.items()}
    return metrics | {f"loss {name}": round(found.loss, 4) for name, found in judged.items()}


@entry()
def evaluate(
    model: nn.Module,
    dataset: Part,
    *,
    loss_fn: Callable[..., Tensor] = cross_entropy,
    dense: nn.Module | None = None,
    batch_size: int = 500,
    precision: Precision = "fp32",
    workers: int | None = None,
) -> Evaluation:
    """Measure a classifier or a language model in eval mode, on the device where it lies; modes are put back.

    Under several processes every rank must call this; each takes its share and all get the same answer.

    Args:
        model: inputs -> logits [B, classes], or one row of logits per label.
        dataset: what to measure on: an `ArrayDataset`, another data set that is read by number, or batches in any form
            that `as_batches` takes; every example counts once. Batches that all processes were given are shared out.
        loss_fn: must take `reduction="sum"`; `DenseOutputs()` asks for `dense`.
        dense: a network to agree with, on the same device: no label is looked at then, and the loss is the divergence
            from its class probabilities, see `prunus.data.DenseOutputs`.
        batch_size: over all ranks together; raised to the number of ranks if smaller. Batches have their own.
        precision: of the forward pass; `auto` is fp32, since what is measured decides.
        workers: processes that read what is not in memory; see `DataSource.workers`.

    Raises:
        ConfigError: `DenseOutputs` without a dense network, or a dense network and another loss.
        DataError: NaN or infinity in the outputs; outputs without classes.

    Example:
        >>> from prunus.data import ArrayDataset, evaluate
        >>> net = nn.Linear(8, 4)
        >>> judged = evaluate(net, ArrayDataset(torch.randn(100, 8), torch.randint(4, (100,))))
        >>> judged.num_examples, 0 <= judged.accuracy <= 100
        (100, True)
    """
    _check(loss_fn, dense)
    with accelerator() as processes:
        rank, world = processes.process_index, processes.num_processes
        own = batches_of(dataset, max(batch_size, world), workers=workers, rank=rank, world=world)
        batches = as_batches(own, model)
        if own is dataset and batches.same_on_all_ranks():
            batches = batches.of(EveryNth(own, rank, world))
        if dense is None:
            found = _totals(model, batches, loss_fn, precision)
        else:
            found = _agreed(model, dense, batches, precision)
        totals = summed(found.to(training_device(processes)))
    right, loss, count, broken, seen = totals.tolist()
    if broken:
        what = f"NaN or infinity in the outputs for {int(broken)} of {int(seen)} examples"
        raise DataError("evaluation", what, "check the inputs, and the weights of the model, for NaN")
    if not count:
        raise DataError("labels", "none is judged", f"give labels other than {IGNORED}")
    return Evaluation(100.0 * right / count, loss / count, int(count), "labels" if dense is None else "dense")


def judged_by(data: DataSource, dense: nn.Module | None) -> Callable[[nn.Module, Part], Evaluation]:
    """How networks are measured on data: on its labels, or, with `DenseOutputs` for a loss, against the dense one."""
    free = isinstance(data.loss_fn, DenseOutputs)
    return partial(evaluate, loss_fn=data.loss_fn, dense=dense if free else None, workers=data.workers)


def _check(loss_fn: Callable[..., Any], dense: nn.Module | None) -> None:
    if isinstance(loss_fn, DenseOutputs) and dense is None:
        what = "there is no dense network whose outputs could take the place of labels"
        raise ConfigError("dense", what, "give dense=, or a loss on labels")
    if dense is not None and loss_fn is not cross_entropy and not isinstance(loss_fn, DenseOutputs):
        what = "the loss against a dense network is the divergence from its class probabilities"
        raise ConfigError("loss_fn", what, "leave out loss_fn, or dense")


def _agreed(model: nn.Module, dense: nn.Module, batches: Loader, precision: Precision) -> Tensor:
    """Float64 [5], as `_totals`, with what the dense network answers in place of labels."""
    totals, losses = torch.zeros(5, dtype=torch.float64, device="cpu"), list[DenseOutputs]()

    def count(_: int, inputs: Any, answer: Any, __: Any) -> None:
        taught = answer if dense is model else forward(dense, inputs)
        outputs, goal = class_rows(answer), class_rows(taught)
        if not losses:
            losses.append(DenseOutputs("probabilities" if are_probabilities(goal) else "logits"))
        target = losses[0].target(inputs, taught)
        broken = (~torch.isfinite(outputs)).flatten(1).any(1).sum()
        same = counted_rows(outputs.argmax(-1) == goal.argmax(-1), target[1]).float()
        loss, judged = losses[0](answer, target, "sum"), torch.ones_like(same).sum()
        totals[:4] += torch.stack([same.sum(), loss.float(), judged, broken.float()]).cpu()
        totals[4] += len(outputs)

    with eval_mode(model), eval_mode(dense):
        _each_answer(model, batches, precision, count)
    return totals


def _totals(model: nn.Module, batches: Loader, loss_fn: Callable[..., Any], precision: Precision) -> Tensor:
    """Float64 [5]: right answers, summed loss, labels, examples with broken outputs, examples."""
    # Not every device has float64; the CPU sums exactly either way.
    totals = torch.zeros(5, dtype=torch.float64, device="cpu")

    def count(_: int, inputs: Any, answer: Any, y: Tensor) -> None:
        outputs = main_output(answer).float()
        broken = (~torch.isfinite(outputs)).flatten(1).any(1).sum()
        right = (classes_last(outputs, y).argmax(-1) == y).sum()
        loss, judged = loss_fn(outputs, y, reduction="sum"), (y != IGNORED).sum()
        totals[:4] += torch.stack([right.float(), loss.float(), judged.float(), broken.float()]).cpu()
        totals[4] += examples_in(inputs)

    with eval_mode(model):
        _each_answer(model, batches, precision, count)
    return totals


def mean_loss(
    model: nn.Module, loader: Iterable[Any], loss_fn: Callable[..., Any], precision: Precision = "auto"
) -> float:
    """Mean of the batches' losses in eval mode, over all ranks' batches; fp32 unless bf16 is asked for by name."""
    with eval_mode(model):
        return standing_loss(model, as_batches(loader, model), loss_fn, precision)


def standing_loss(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss_fn: Callable[..., Any],
    precision: Precision = "auto",
    where: str = "",
) -> float:
    """Mean of the batches' losses of a model that stands still already; losses are fp32, their sum fp64.

    Args:
        model: in the mode that is to be judged.
        batches: of this rank; those of all count alike.
        loss_fn: mean loss of a batch.
        precision: of the forward pass; `auto` is fp32, since what is measured decides.
        where: names the batches in errors; without it a loss may be NaN.

    Raises:
        DataError: NaN or infinity in the inputs or the loss, if `where` is given.
    """
    total, count, loss_of = 0.0, 0, mean_of(loss_fn)

    def add(step: int, inputs: Any, answer: Any, targets: Any) -> None:
        nonlocal total, count
        loss = loss_of(answer, widened(targets))
        if where:
            check_loss(loss, inputs, f"{where} {step}", model)
        total, count = total + float(loss), count + 1

    _each_answer(model, batches, precision, add)
    if not distributed():
        return total / count
    over_ranks = torch.tensor([total, count], dtype=torch.float64, device=model_device(model))
    losses, batches_seen = summed(over_ranks).tolist()
    return float(losses / batches_seen)


def _each_answer(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    precision: Precision,
    take: Callable[[int, Any, Any, Any], None],
) -> None:
    """Give `take` number, inputs, outputs and targets of every batch, without gradients, nothing in bf16 or fp16."""
    device = model_device(model)
    with torch.no_grad(), full_precision():
        for step, batch in enumerate(batches):
            inputs, targets = to_device(batch, device)
            with autocast(device, deciding(precision)):
                answer = widened(forward(model, inputs))
            take(step, inputs, answer, targets)
