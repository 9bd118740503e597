"""What networks are judged by besides their loss: a name, a direction, and numbers that add up over batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from prunus.data.losses import IGNORED, classes_last
from prunus.errors import ConfigError, DataError
from prunus.runtime.arguments import examples_in, tensors_in

Better = Literal["higher", "lower"]
Pair = tuple[Tensor, Tensor]


@runtime_checkable
class Accumulating(Protocol):
    """What torchmetrics' metrics are: batches go in, and the answer comes at the end."""

    def update(self, outputs: Any, targets: Any) -> Any:
        """Take a batch in."""

    def compute(self) -> Any:
        """The answer; where several processes measure, of all of them."""

    def reset(self) -> Any:
        """Begin anew."""


@dataclass(frozen=True)
class Metric:
    """What networks are judged by; epochs and stages are chosen by it, the loss decides among equals.

    Attributes:
        name: as it is told: `accuracy`, `mean IoU`, `word errors`.
        measure: `measure(outputs, targets)` of a batch. It returns one value per example [B], whose mean counts; or a
            pair of sums of one shape, such as (right, judged) or (errors, words), whose quotient counts, over all
            batches: the mean of quotients, where they have several (intersections and unions [C] of classes). Or an
            object with `update`, `compute` and `reset`, as torchmetrics has them.
        better: whether `higher` or `lower` values are better.
        unit: `%` shows a share in percent; any other is written behind the number.

    Raises:
        ConfigError: neither a function nor such an object, another direction, or a name that means something else.

    Example:
        >>> from prunus.data import Metric
        >>> far = Metric("mean distance", lambda outputs, targets: (outputs - targets).abs().mean(1), better="lower")
        >>> far.score(far.add(None, torch.zeros(2, 3), torch.ones(2, 3)))
        1.0
    """

    name: str
    measure: Callable[[Any, Any], Any] | Accumulating
    better: Better = "higher"
    unit: str = ""

    def __post_init__(self) -> None:
        if not callable(self.measure) and not isinstance(self.measure, Accumulating):
            what = f"a {type(self.measure).__name__} can't be called, and has no update, compute and reset"
            raise ConfigError(f"metric {self.name!r}", what, "give measure(outputs, targets)")
        plain = (self.better, self.unit) == ("higher", "%")
        if self.name == "loss" or (self.name in ("accuracy", "agreement") and not plain):
            what = "so is called the loss itself, or a share in percent of which more is better"
            raise ConfigError(f"metric {self.name!r}", what, "call it otherwise, or say better='higher', unit='%'")
        if self.better not in ("higher", "lower"):
            raise ConfigError(f"metric {self.name!r}", f"better={self.better!r} is no direction", "say higher or lower")

    def start(self) -> None:
        """Forget the batches before."""
        if isinstance(self.measure, Accumulating):
            self.measure.reset()

    def add(self, before: Pair | None, outputs: Any, targets: Any) -> Pair | None:
        """The sums with a batch more, float64 on the CPU; None of what keeps them itself.

        Raises:
            DataError: the function returns something else than it should.
        """
        if isinstance(self.measure, Accumulating):
            if isinstance(self.measure, nn.Module) and (tensors := tensors_in(outputs)):
                self.measure.to(tensors[0].device)  # torchmetrics' hold their sums in buffers
            self.measure.update(outputs, targets)
            return None
        found = self.measure(outputs, targets)
        if isinstance(found, Tensor):
            count = len(found) if found.dim() else examples_in(outputs)
            found = (found.double().sum() if found.dim() else found.double() * count, torch.tensor(float(count)))
        if not isinstance(found, tuple) or len(found) != 2:
            fix = "return one value per example, or a pair of sums: (part, whole)"
            raise DataError(f"metric {self.name!r}", f"it returned a {type(found).__name__}", fix)
        sums = tuple(torch.as_tensor(part).detach().double().cpu() for part in found)
        if sums[0].shape != sums[1].shape:
            what = f"its sums have the shapes {list(sums[0].shape)} and {list(sums[1].shape)}"
            raise DataError(f"metric {self.name!r}", what, "return two of one shape")
        return (sums[0], sums[1]) if before is None else (before[0] + sums[0], before[1] + sums[1])

    def score(self, sums: Pair | None) -> float:
        """What all batches together say; in percent, if that is the unit.

        Raises:
            DataError: nothing was judged.
        """
        if isinstance(self.measure, Accumulating):
            value = float(torch.as_tensor(self.measure.compute()).double().mean())
        else:
            part, whole = sums if sums is not None else (torch.zeros(1), torch.zeros(1))
            counted = whole > 0
            if not bool(counted.any()):
                raise DataError("labels", f"none is judged by {self.name}", f"give labels other than {IGNORED}")
            value = float((part[counted] / whole[counted]).mean())
        return 100.0 * value if self.unit == "%" else value

    def shown(self, score: float) -> str:
        """A score with its unit."""
        return f"{score:.2f} %" if self.unit == "%" else f"{score:.4g} {self.unit}".strip()


def right_answers(outputs: Tensor, labels: Tensor) -> Pair:
    """How many classes are right, and how many labels are judged."""
    right = classes_last(outputs, labels).argmax(-1) == labels
    return right.sum(), (labels != IGNORED).sum()


def mean_iou(classes: int) -> Metric:
    """Intersection over union, the mean over the classes that occur; of logits [B, C, H, W] and labels [B, H, W].

    Args:
        classes: how many there are.
    """

    def measure(outputs: Tensor, labels: Tensor) -> Pair:
        judged = labels != IGNORED
        found, wanted = classes_last(outputs, labels).argmax(-1)[judged], labels[judged]
        both = torch.bincount(found[found == wanted], minlength=classes)
        return both, torch.bincount(found, minlength=classes) + torch.bincount(wanted, minlength=classes) - both

    return Metric("mean IoU", measure, "higher", "%")


ACCURACY = Metric("accuracy", right_answers, "higher", "%")
"""Top-1, over all labels that are judged."""


def are_classes(outputs: Any, targets: Any) -> bool:
    """Whether targets are class labels of which the outputs hold one row of logits each."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.is_floating_point()):
        return False
    if targets.is_floating_point() or targets.dtype == torch.bool or targets.dim() == 0:
        return False
    try:
        return classes_last(outputs, targets).shape[-1] > 1
    except DataError:
        return False
