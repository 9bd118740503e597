"""What is made small in a recovery: the loss on targets, and the distance from the teacher's answers and blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.data.datasets import DataSource
from prunus.data.dense_outputs import DenseOutputs, class_rows, counted_in, counted_rows
from prunus.data.losses import classes_last, main_output, mean_of, own_loss
from prunus.data.metrics import are_classes
from prunus.recovery.blocks import BlockOutputs, block_distance, common_blocks
from prunus.recovery.config import FinetuneConfig
from prunus.runtime.calling import call
from prunus.runtime.precision import autocast, to_device, widened


class Objective:
    """The loss of a batch. Where the targets are classes the teacher's soft ones are distilled; else its outputs.

    Args:
        data: its loss, and what of the answer that gets.
        config: label smoothing, temperature, and the weight of the teacher.
        teacher: the dense network, on the device; None for none.
        device: where the batches are.
        precision: of the teacher's pass.
        model: what is trained, on the device, whose blocks are held against the teacher's; None for answers alone.

    Attributes:
        ours: the context in which the model is called, which watches its blocks.
    """

    def __init__(
        self,
        data: DataSource,
        config: FinetuneConfig,
        teacher: nn.Module | None,
        device: torch.device,
        precision: Any,
        model: nn.Module | None = None,
    ) -> None:
        smoothing = config.label_smoothing
        self.free = isinstance(data.loss_fn, DenseOutputs)
        self.loss = mean_of(partial(data.loss_fn, label_smoothing=smoothing) if smoothing else data.loss_fn)
        self.whole = data.outputs == "all" or data.loss_fn is own_loss
        self.config, self.teacher, self.device, self.precision = config, teacher, device, precision
        self.distance: DenseOutputs | None = None
        names = list[str]()
        if model is not None and teacher is not None and config.block_weight:
            few = to_device(data.example_inputs, device)
            names = common_blocks(model, teacher, lambda network: call(network, few))
        self.ours, self.goal = (BlockOutputs(network, names) for network in (model, teacher))

    @property
    def spread(self) -> tuple[float, ...]:
        """Variance of the teacher's outputs, in which distances are measured; empty before the first batch."""
        return () if self.distance is None else self.distance.spread

    def measure_by(self, spread: tuple[float, ...]) -> None:
        """Take this variance, where there is one, instead of the first batch's."""
        self.distance = DenseOutputs("values", spread) if spread else None

    def state_dict(self) -> dict[str, Any]:
        """The variance that distances are measured in, of an epoch under way."""
        return {"spread": list(self.spread)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it."""
        self.measure_by(tuple(state["spread"]))

    def close(self) -> None:
        """Watch the networks no more."""
        self.ours.remove()
        self.goal.remove()

    def __call__(self, answer: Any, inputs: Any, targets: Any) -> Tensor:
        """From the model's answer to the inputs, in fp32 or better, a scalar."""
        loss = self._of_answers(answer, inputs, targets)
        if not self.ours.hooks:
            return loss
        return loss + self.config.block_weight * block_distance(self.ours.taken(), self.goal.taken())

    def _of_answers(self, answer: Any, inputs: Any, targets: Any) -> Tensor:
        if self.free:
            both, counted = (main_output(answer).float(), main_output(self._taught(inputs)).float()), counted_in(inputs)
            student, goal = (counted_rows(class_rows(logits), counted, classes=True) for logits in both)
            return distillation_loss(student, goal, self.config.temperature)
        hard = self.loss(widened(answer) if self.whole else main_output(answer).float(), widened(targets))
        if self.teacher is None:
            return hard
        soft = self._soft(answer, inputs, targets)
        return (1.0 - self.config.distillation) * hard + self.config.distillation * soft

    def _soft(self, answer: Any, inputs: Any, targets: Any) -> Tensor:
        taught = self._taught(inputs)
        if are_classes(main_output(answer), targets):
            both = (main_output(found).float() for found in (answer, taught))
            student, goal = (classes_last(logits, targets).flatten(0, -2) for logits in both)
            return distillation_loss(student, goal, self.config.temperature)
        if self.distance is None:  # the first batch says how far the outputs spread, of all ranks together
            assert self.teacher is not None
            self.distance = DenseOutputs("values").decided(self.teacher, [taught])
        return self.distance(answer, self.distance.target(inputs, taught))

    def _taught(self, inputs: Any) -> Any:
        assert self.teacher is not None
        with torch.no_grad(), autocast(self.device, self.precision), self.goal:
            return call(self.teacher, inputs)


def distillation_loss(outputs: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher_T || student_T), mean over the batch.

    Args:
        outputs: the student's logits, fp32 [B, classes].
        taught: the teacher's, the same shape.
        temperature: T; the factor T^2 keeps the gradient's size independent of it.

    Returns:
        A scalar.
    """
    student, goal = F.log_softmax(outputs / temperature, 1), F.log_softmax(taught / temperature, 1)
    return F.kl_div(student, goal, reduction="batchmean", log_target=True) * temperature**2
