"""One training step as every loop takes it: forward, refuse what is broken, backward, the same step on all ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError, DataError
from prunus.runtime.arguments import examples_in, tensors_in
from prunus.runtime.modes import single_values
from prunus.runtime.pieces import Pieces, out_of_memory
from prunus.runtime.precision import Precision, autocast, to_device
from prunus.runtime.processes import average_gradients_, distributed, model_device, summed
from prunus.runtime.progress import Bar
from prunus.runtime.randomstate import generator_states, restore_generators

LossFunction = Callable[..., Tensor]


class BatchSource(Protocol):
    """Batches that can be looped over again and again, in any of the forms that `as_batches` takes."""

    def __iter__(self) -> Iterator[Any]:
        """The batches of one pass."""
        ...


@dataclass(frozen=True)
class Training:
    """What is the same in every step of a loop.

    Attributes:
        model: what trains, or what the trained gates and masks are in; where it lies, the batches go.
        precision: of the forward pass.
        bar: counts the steps.
        optimizer: over all that trains; None where gradients alone are wanted.
        around: a context for every forward pass.
        weighted: the loss is a sum over the examples of the batch it is given, divided by a number that stays the same.
        pieces: that batches are taken in, more of them where the memory does not hold a step.
    """

    model: nn.Module
    precision: Precision
    bar: Bar
    optimizer: torch.optim.Optimizer | None = None
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    weighted: bool = False
    pieces: Pieces = field(default_factory=Pieces)

    def step(
        self,
        batch: tuple[Any, Any],
        loss_of: Callable[[Any, Any], Tensor],
        where: str,
        penalty: Callable[[], Tensor | None] | None = None,
    ) -> Tensor:
        """Learn from one batch; the same on every rank.

        In one process, where the memory does not hold it, in pieces, whose gradients add up to the batch's.

        Args:
            batch: inputs and targets, anywhere.
            loss_of: from both, on the model's device, to the mean loss.
            where: names the step in errors.
            penalty: what is minimised besides the loss, in fp32; None where it counts nothing.

        Returns:
            The loss without the penalty, detached.

        Raises:
            DataError: NaN or infinity, or a loss without gradient; nothing has been learned from the batch then.
        """
        inputs, targets = to_device(batch, model_device(self.model))
        divisible = self.optimizer is not None and not distributed()
        loss: Tensor | None = None
        while loss is None:
            stood = generator_states(model_device(self.model)) if divisible else None
            try:
                loss = self._gradients(inputs, targets, loss_of, where, penalty)
            except RuntimeError as error:
                if stood is None or not out_of_memory(error) or not self.pieces.halve_(examples_in(inputs)):
                    raise
                restore_generators(stood)  # what the attempt drew is drawn again
        if self.optimizer is not None:
            loss = self.agree_(loss, where)
            self.optimizer.step()
        self.bar.advance()
        return loss

    def _gradients(
        self,
        inputs: Any,
        targets: Any,
        loss_of: Callable[[Any, Any], Tensor],
        where: str,
        penalty: Callable[[], Tensor | None] | None,
    ) -> Tensor:
        """Gradients of the whole batch, piece by piece; its loss."""
        total: Tensor | None = None
        for x, y, share in self.pieces.of(inputs, targets):
            lone = single_values() if examples_in(x) == 1 else contextlib.nullcontext()
            with self.around(), autocast(model_device(self.model), self.precision), lone:
                loss = loss_of(x, y)
            if share < 1 and not self.weighted:
                loss = loss * share
            added = penalty() if penalty is not None and total is None else None
            objective = loss if added is None else loss + added
            self.check(objective, x, where)
            if self.optimizer is not None and total is None:
                self.optimizer.zero_grad(set_to_none=True)
            backward(objective, loss)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def check(self, objective: Tensor, inputs: Any, where: str) -> None:
        """Refuse the objective before its backward pass."""
        check_loss(objective, inputs, where, self.model)

    def agree_(self, loss: Tensor, where: str) -> Tensor:
        """Give every rank the same gradients, after the backward pass; the loss to report."""
        average_gradients_(self.trained)
        return loss

    @property
    def trained(self) -> list[nn.Parameter]:
        """All that the optimizer changes."""
        return [] if self.optimizer is None else [p for g in self.optimizer.param_groups for p in g["params"]]


@contextlib.contextmanager
def only_trainable(model: nn.Module, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the context only `weights` need gradients; afterwards what needed them before, and no gradient is left.

    Raises:
        ConfigError: weights in fp16, in which Adam's second moments vanish and the first step divides by zero.
    """
    if any(w.dtype == torch.float16 for w in weights):
        fix = "call model.float() or model.bfloat16() first, or keep the weights as they are (train_weights)"
        raise ConfigError("model", "its weights are fp16, which can't be trained as they are", fix)
    needs = {p: p.requires_grad for p in model.parameters()}
    try:
        for parameter in needs:
            parameter.requires_grad_(False)
        for parameter in weights:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, need in needs.items():
            parameter.requires_grad_(need)
            parameter.grad = None


def check_loss(loss: Tensor, inputs: Any, where: str, model: nn.Module) -> None:
    """Raise DataError on every rank if the loss is NaN or infinite on any of them, and say what else is."""
    finite = torch.isfinite(loss.detach()).all().float()
    if bool(summed(1 - finite) == 0):
        return
    tensors = [t for t in tensors_in(inputs) if t.is_floating_point()]
    if bool(finite):
        raise DataError(where, "NaN or infinity on another rank", "see that rank's message")
    if not all(bool(torch.isfinite(t).all()) for t in tensors):
        raise DataError(where, "NaN or infinity in the inputs", "clean the data")
    broken = [n for n, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if broken:
        fix = "load finite weights; where they trained along, lower the learning rate"
        raise DataError(where, f"NaN or infinity in the loss, as in the weights: {', '.join(broken[:4])}", fix)
    fix = "lower the learning rate or use precision='fp32'; look for activations beyond what the model's dtype holds"
    raise DataError(where, "NaN or infinity in the loss", fix)


def backward(objective: Tensor, loss: Tensor | None = None) -> None:
    """Backward pass of an objective, in which the loss of the batch must play a part.

    Raises:
        DataError: the loss carries no gradient.
    """
    if not (objective if loss is None else loss).requires_grad:
        fix = "compute it from the model's outputs with torch, without detach() or item(), and grad mode on"
        raise DataError("loss_fn", "the loss carries no gradient, so nothing could be learned from it", fix)
    objective.backward()
