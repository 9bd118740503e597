"""Accuracy and loss of a model on data: fp32 unless bf16 is asked for by name, summed in fp64 over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.batches import as_batches, forward
from prunus.data.datasets import ArrayDataset, Batches
from prunus.data.losses import IGNORED, classes_last, cross_entropy, main_output, mean_of
from prunus.errors import DataError
from prunus.runtime.entry import entry
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import Precision, autocast, deciding, full_precision, to_device, widened
from prunus.runtime.processes import accelerator, distributed, model_device, summed, training_device
from prunus.runtime.training import check_loss


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        accuracy: top-1, percent.
        loss: mean over the same; of a language model, nats per token.
        num_examples: how many labels were judged, over all ranks: one per example, or every position with a label.
    """

    accuracy: float
    loss: float
    num_examples: int

    def __str__(self) -> str:
        return f"{self.accuracy:.2f} %, loss {self.loss:.4f}"


def metrics_of(judged: Mapping[str, Evaluation]) -> dict[str, float]:
    """Accuracies and losses by stage, rounded, as a model card shows them."""
    metrics = {f"accuracy {name} (%)": round(found.accuracy, 2) for name, found in judged.items()}
    return metrics | {f"loss {name}": round(found.loss, 4) for name, found in judged.items()}


@entry()
def evaluate(
    model: nn.Module,
    dataset: ArrayDataset,
    *,
    loss_fn: Callable[..., Tensor] = cross_entropy,
    batch_size: int = 500,
    precision: Precision = "fp32",
) -> Evaluation:
    """Measure a classifier or a language model in eval mode, on the device where it lies; modes are put back.

    Under several processes every rank must call this; each takes its share and all get the same answer.

    Args:
        model: inputs -> logits [B, classes], or one row of logits per label.
        dataset: what to measure on; every example counts once.
        loss_fn: must take `reduction="sum"`.
        batch_size: over all ranks together; raised to the number of ranks if smaller.
        precision: of the forward pass; `auto` is fp32, since what is measured decides.

    Raises:
        DataError: NaN or infinity in the outputs.

    Example:
        >>> from prunus.data import ArrayDataset, evaluate
        >>> net = nn.Linear(8, 4)
        >>> judged = evaluate(net, ArrayDataset(torch.randn(100, 8), torch.randint(4, (100,))))
        >>> judged.num_examples, 0 <= judged.accuracy <= 100
        (100, True)
    """
    with accelerator() as processes:
        rank, world = processes.process_index, processes.num_processes
        batches = Batches(dataset, max(batch_size, world), rank=rank, world=world)
        totals = summed(_totals(model, batches, loss_fn, precision).to(training_device(processes)))
    right, loss, count, broken = totals.tolist()
    if broken:
        what = f"NaN or infinity in the outputs for {int(broken)} of {len(dataset)} examples"
        raise DataError("evaluation", what, "check the inputs, and the weights of the model, for NaN")
    if not count:
        raise DataError("labels", "none is judged", f"give labels other than {IGNORED}")
    return Evaluation(100.0 * right / count, loss / count, int(count))


def _totals(model: nn.Module, batches: Batches, loss_fn: Callable[..., Any], precision: Precision) -> Tensor:
    """Float64 [4]: right answers, summed loss, examples, examples with broken outputs."""
    # Not every device has float64; the CPU sums exactly either way.
    totals = torch.zeros(4, dtype=torch.float64, device="cpu")

    def count(_: int, __: Any, answer: Any, y: Tensor) -> None:
        outputs = main_output(answer).float()
        broken = (~torch.isfinite(outputs)).flatten(1).any(1).sum()
        right = (classes_last(outputs, y).argmax(-1) == y).sum()
        loss, judged = loss_fn(outputs, y, reduction="sum"), (y != IGNORED).sum()
        totals.add_(torch.stack([right.float(), loss.float(), judged.float(), broken.float()]).cpu())

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
