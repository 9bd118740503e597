"""Accuracy, or another metric, and loss of a model on data: fp32 unless bf16 is asked for by name, summed in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunus.data.batches import EveryNth, Loader, as_batches, forward
from prunus.data.datasets import DataSource, Part, batches_of, judged_at_once
from prunus.data.dense_outputs import DenseOutputs, are_probabilities, class_rows, counted_rows
from prunus.data.losses import IGNORED, Outputs, cross_entropy, main_output, mean_of, own_loss
from prunus.data.metrics import ACCURACY, Better, Metric, Pair, are_classes
from prunus.errors import ConfigError, DataError
from prunus.runtime.arguments import examples_in, tensors_in
from prunus.runtime.entry import entry
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import Precision, autocast, deciding, full_precision, to_device, widened
from prunus.runtime.processes import accelerator, distributed, gathered_objects, model_device, summed
from prunus.runtime.training import check_loss


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        score: of the metric; of accuracy top-1 in percent; against the dense network, how often both put the same class
            first. Where there is neither a metric nor a class, the loss.
        loss: mean over the labels; of a language model, nats per token. Against the dense network, KL(dense || model).
        num_examples: how many labels were judged, over all ranks: one per example, or every position with a label.
        against: `labels`, or the answers of the `dense` network.
        metric: name of what `score` is.
        better: whether a `higher` or a `lower` score is better.
        unit: of the score.
    """

    score: float
    loss: float
    num_examples: int
    against: Literal["labels", "dense"] = "labels"
    metric: str = "accuracy"
    better: Better = "higher"
    unit: str = "%"

    @property
    def accuracy(self) -> float:
        """The score, where it is an accuracy or an agreement. Raises ConfigError where it is none."""
        if self.metric != "accuracy":
            raise ConfigError("accuracy", f"what was measured is {self.metric}", "read .score")
        return self.score

    @property
    def measure(self) -> str:
        """What the score is: the metric's name, or `agreement` where no label was looked at."""
        return self.metric if self.against == "labels" else "agreement"

    @property
    def shown(self) -> str:
        """The score with its unit."""
        return Metric(self.metric, _nothing, self.better, self.unit).shown(self.score)

    def better_than(self, other: Evaluation) -> bool:
        """By the score, or among equals by the loss; what is no number is worse than any."""
        sign = 1 if self.better == "higher" else -1
        one, two = ([_or_worst(sign * e.score), _or_worst(-e.loss)] for e in (self, other))
        return one > two

    def __str__(self) -> str:
        if self.against == "dense":
            return f"{self.score:.2f} % agreement, divergence {self.loss:.4f}"
        if self.metric == "loss":
            return f"loss {self.loss:.4f}"
        return f"{self.shown if self.metric == 'accuracy' else f'{self.metric} {self.shown}'}, loss {self.loss:.4f}"


def _or_worst(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _nothing(*_: Any) -> None:
    """In place of a metric that has measured."""


def metrics_of(judged: Mapping[str, Evaluation]) -> dict[str, float]:
    """Scores and losses by stage, rounded, as a model card shows them."""
    shares = {n: found for n, found in judged.items() if found.metric != "loss"}
    metrics = {
        f"{found.measure} {name}{f' ({found.unit})' if found.unit else ''}": round(found.score, 2 if found.unit else 4)
        for name, found in shares.items()
    }
    return metrics | {f"loss {name}": round(found.loss, 4) for name, found in judged.items()}


@entry()
def evaluate(
    model: nn.Module,
    dataset: Part,
    *,
    loss_fn: Callable[..., Tensor] = cross_entropy,
    metric: Metric | None = None,
    dense: nn.Module | None = None,
    batch_size: int = 500,
    precision: Precision = "fp32",
    workers: int | None = None,
    outputs: Outputs = "main",
) -> Evaluation:
    """Measure a model in eval mode, on the device where it lies; modes are put back.

    Under several processes every rank must call this; each takes its share and all get the same answer.

    Args:
        model: whose outputs the loss and the metric understand.
        dataset: what to measure on: an `ArrayDataset`, another data set that is read by number, or batches in any form
            that `as_batches` takes; every example counts once. Batches that all processes were given are shared out.
        loss_fn: mean loss of a batch; `DenseOutputs()` asks for `dense`.
        metric: what is measured besides; None takes the accuracy where targets are classes, and else the loss alone.
        dense: a network to agree with, on the same device: no label is looked at then, and the loss is the divergence
            from its class probabilities, see `prunus.data.DenseOutputs`.
        batch_size: over all ranks together; raised to the number of ranks if smaller, and lowered for large examples.
            Batches have their own.
        precision: of the forward pass; `auto` is fp32, since what is measured decides.
        workers: processes that read what is not in memory; see `DataSource.workers`.
        outputs: what loss and metric get: the `main` tensor of the model's answer, or `all` of it.

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
    own = loss_fn is own_loss
    with accelerator() as processes:
        rank, world = processes.process_index, processes.num_processes
        size = max(judged_at_once(dataset, batch_size), world)
        given = batches_of(dataset, size, workers=workers, rank=rank, world=world)
        batches = as_batches(given, model, own_loss=own)
        if given is dataset and batches.same_on_all_ranks():
            batches = batches.of(EveryNth(given, rank, world))
        if dense is not None:
            counts = _agreed(model, dense, batches, precision)
        else:
            counts = _counted(model, batches, loss_fn, metric, precision, whole=own or outputs == "all")
        counts = counts.over_ranks()
    if counts.broken:
        what = f"NaN or infinity in the outputs for {counts.broken} of {counts.examples} examples"
        raise DataError("evaluation", what, "check the inputs, and the weights of the model, for NaN")
    if not counts.labels:
        raise DataError("labels", "none is judged", f"give labels other than {IGNORED}")
    return counts.evaluation("labels" if dense is None else "dense")


def judged_by(data: DataSource, dense: nn.Module | None) -> Callable[[nn.Module, Part], Evaluation]:
    """How networks are measured on data: on its labels, or, with `DenseOutputs` for a loss, against the dense one."""
    against = dense if isinstance(data.loss_fn, DenseOutputs) else None
    own: dict[str, Any] = {"metric": data.metric, "workers": data.workers, "outputs": data.outputs}
    return partial(evaluate, loss_fn=data.loss_fn, dense=against, **own)


def _check(loss_fn: Callable[..., Any], dense: nn.Module | None) -> None:
    if isinstance(loss_fn, DenseOutputs) and dense is None:
        what = "there is no dense network whose outputs could take the place of labels"
        raise ConfigError("dense", what, "give dense=, or a loss on labels")
    if dense is not None and loss_fn is not cross_entropy and not isinstance(loss_fn, DenseOutputs):
        what = "the loss against a dense network is the divergence from its class probabilities"
        raise ConfigError("loss_fn", what, "leave out loss_fn, or dense")


@dataclass
class _Counts:
    """What adds up: sums are fp64 and on the CPU, since not every device has them."""

    metric: Metric | None = None
    loss: float = 0.0
    labels: int = 0
    broken: int = 0
    examples: int = 0
    sums: Pair | None = None

    def over_ranks(self) -> _Counts:
        """Those of all processes together."""
        if not distributed():
            return self
        numbers = gathered_objects((self.loss, self.labels, self.broken, self.examples, self.sums))
        total = _Counts(self.metric)
        for loss, labels, broken, examples, sums in numbers:
            total.loss, total.labels = total.loss + loss, total.labels + labels
            total.broken, total.examples = total.broken + broken, total.examples + examples
            if sums is not None:
                before = total.sums
                total.metric = total.metric or ACCURACY  # a rank without a batch can't tell
                total.sums = sums if before is None else (before[0] + sums[0], before[1] + sums[1])
        return total

    def evaluation(self, against: Literal["labels", "dense"]) -> Evaluation:
        """What they say."""
        loss = self.loss / self.labels
        metric = self.metric
        if metric is None:
            return Evaluation(loss, loss, self.labels, against, "loss", "lower", "")
        return Evaluation(metric.score(self.sums), loss, self.labels, against, metric.name, metric.better, metric.unit)


def _agreed(model: nn.Module, dense: nn.Module, batches: Loader, precision: Precision) -> _Counts:
    """As `_counted`, with what the dense network answers in place of labels."""
    counts, losses = _Counts(ACCURACY), list[DenseOutputs]()

    def count(_: int, inputs: Any, answer: Any, __: Any) -> None:
        taught = answer if dense is model else forward(dense, inputs)
        outputs, goal = class_rows(answer), class_rows(taught)
        if not losses:
            losses.append(DenseOutputs("probabilities" if are_probabilities(goal) else "logits"))
        target = losses[0].target(inputs, taught)
        same = counted_rows(outputs.argmax(-1) == goal.argmax(-1), target[1])
        counts.loss += float(losses[0](answer, target, "sum"))
        counts.labels += same.numel()
        counts.broken += _broken(outputs, len(outputs))
        counts.examples += len(outputs)
        sums = (same.sum().double().cpu(), torch.tensor(float(same.numel()), dtype=torch.float64, device="cpu"))
        counts.sums = sums if counts.sums is None else (counts.sums[0] + sums[0], counts.sums[1] + sums[1])

    with eval_mode(model), eval_mode(dense):
        _each_answer(model, batches, precision, count)
    return counts


def _counted(
    model: nn.Module,
    batches: Loader,
    loss_fn: Callable[..., Any],
    metric: Metric | None,
    precision: Precision,
    *,
    whole: bool,
) -> _Counts:
    """Loss and metric on the targets; the loss gets all outputs if they are `whole`, the metric what it understands."""
    counts, mean = _Counts(metric), mean_of(loss_fn)
    if metric is not None:
        metric.start()

    def count(step: int, inputs: Any, answer: Any, y: Any) -> None:
        outputs = answer if whole else main_output(answer).float()
        number = examples_in(inputs)
        labels = int((y != IGNORED).sum()) if _are_numbers(y) else number
        if step == 0 and metric is None and are_classes(_main(answer), y):
            counts.metric = ACCURACY
        counts.broken += _broken(outputs, number)
        counts.examples += number
        counts.labels += labels
        if counts.metric is not None:
            main = counts.metric is ACCURACY and whole
            counts.sums = counts.metric.add(counts.sums, main_output(answer) if main else outputs, y)
        if labels:
            summed_up = loss_fn is cross_entropy
            loss = loss_fn(outputs, y, reduction="sum") if summed_up else mean(outputs, widened(y)) * labels
            counts.loss += float(loss)

    with eval_mode(model):
        _each_answer(model, batches, precision, count)
    return counts


def _are_numbers(targets: Any) -> bool:
    """Whether they are whole numbers, of which some may not count."""
    return isinstance(targets, Tensor) and not targets.is_floating_point() and targets.dim() > 0


def _main(answer: Any) -> Tensor | None:
    try:
        return main_output(answer)
    except DataError:
        return None


def _broken(outputs: Any, examples: int) -> int:
    """Examples with NaN or infinity in their outputs; all of a batch where outputs have no rows of examples."""
    broken = 0
    for tensor in tensors_in(outputs):
        if tensor.is_floating_point():
            wrong = ~torch.isfinite(tensor)
            rows = tensor.dim() > 0 and len(tensor) == examples
            broken = max(broken, int(wrong.flatten(1).any(1).sum() if rows and tensor.dim() > 1 else wrong.sum()))
    return min(broken, examples)


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
