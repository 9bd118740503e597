"""Batches whose targets are the dense network's own outputs, computed as they are asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.batches import Form, Loader, forward
from prunus.data.dense_outputs import DenseOutputs, counted_in
from prunus.runtime.arguments import examples_in, tensors_in
from prunus.runtime.copies import twin
from prunus.runtime.modes import without_cache
from prunus.runtime.precision import full_precision, to_device
from prunus.runtime.processes import distributed, model_device, summed
from prunus.runtime.seeds import seeded

FIRST = 4
"""Batches from which it is found out how far the outputs spread."""


class Inputs(Loader):
    """Batches without their targets: inputs, and which positions of them count (None: all)."""

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for inputs, _ in super().__iter__():
            yield inputs, counted_in(inputs)


class Taught(Loader):
    """Batches of inputs and the dense network's outputs for them, in eval mode, fp32 and without gradients."""

    def __init__(self, data: Iterable[Any], form: Form, dense: nn.Module, loss: DenseOutputs) -> None:
        super().__init__(data, form)
        self.dense, self.loss = dense, loss
        self.positions: tuple[int, ...] = ()
        self.padded = self.by_input = False

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for inputs, outputs in self.answers():
            yield inputs, self.loss.target(inputs, outputs)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def inputs(self) -> Loader:
        """The same batches without a pass of the dense network."""
        return Inputs(self.data, self.form)

    def of(self, data: Iterable[Any]) -> Taught:
        """Other data, taught by the same network."""
        other = Taught(data, self.form, self.dense, self.loss)
        other.positions, other.padded, other.by_input = self.positions, self.padded, self.by_input
        return other

    def answers(self) -> Iterator[tuple[Any, Any]]:
        """Inputs, on the network's device, and its answers."""
        dense = twin(self.dense).eval()  # anew for every pass: what its code keeps or counts goes with it
        device = model_device(dense)
        for given, _ in self.inputs:
            inputs = to_device(given, device)
            with without_cache(dense), torch.no_grad(), full_precision():
                outputs = forward(dense, inputs)
            yield inputs, outputs

    def num_labels(self) -> int:
        """Predictions in one pass over the data of all processes: one per example, or per position that counts."""
        known = self.inputs.known_examples()
        if known is not None and not self.positions:
            return known
        with torch.random.fork_rng(devices=[]):
            total = sum(self._predictions(inputs, counted) for inputs, counted in self.inputs)
        if distributed() and not self.inputs.same_on_all_ranks():
            return int(summed(torch.tensor(total)))
        return total

    def look_(self, model: nn.Module, seed: int) -> None:
        """Find out from the first batches, the same for one seed, what the outputs are; on every rank alike."""
        with seeded(seed, alike=True):
            self.set_epoch(0)
            few = itertools.islice(self.answers(), FIRST)
            inputs, first = next(few)
            self.loss = self.loss.decided(model, itertools.chain([first], (outputs for _, outputs in few)))
        (goal, *_), counted = self.loss.target(inputs, first)
        if self.loss.kind != "values" and goal.dim() > 2:
            rows = goal.shape[:-1]
            self.positions = tuple(rows[1:])
            self.padded = counted is not None and counted.shape == rows
            self.by_input = tensors_in(inputs)[0].shape[: len(rows)] == rows

    def _predictions(self, inputs: Any, counted: Tensor | None) -> int:
        if self.padded and counted is not None:
            return int(counted.sum())
        if self.by_input:  # texts of any length
            return tensors_in(inputs)[0].shape[: 1 + len(self.positions)].numel()
        return examples_in(inputs) * torch.Size(self.positions).numel()


def taught(
    model: nn.Module, loader: Loader, loss_fn: Callable[..., Tensor], seed: int = 0
) -> tuple[Loader, Callable[..., Tensor]]:
    """Batches and loss as they are; with `DenseOutputs` for a loss, what the dense network teaches, and its distance.

    Args:
        model: the dense network; a twin of it answers, so that gates on the model don't count.
        loader: batches, whose targets nobody looks at.
        loss_fn: of a batch.
        seed: of which batches come first.

    Raises:
        DataError: there is no batch, or outputs without floating-point tensors.
    """
    if not isinstance(loss_fn, DenseOutputs):
        return loader, loss_fn
    if not isinstance(loader, Taught):
        loader = Taught(loader.data, loader.form, twin(model), loss_fn)
        loader.look_(model, seed)
    return loader, loader.loss
