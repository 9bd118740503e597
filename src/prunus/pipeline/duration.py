"""About how long learning and recovery take: their steps, at the speed of the first ones here."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import nn

from prunus.data.batches import length_of
from prunus.data.datasets import DataSource, first_of, read_by_number
from prunus.data.losses import main_output
from prunus.methods.base import MaskMethod, Method, PosteriorMethod, StagedMethod
from prunus.recovery.config import FinetuneConfig
from prunus.runtime.arguments import examples_in
from prunus.runtime.calling import call
from prunus.runtime.copies import copied
from prunus.runtime.pieces import out_of_memory
from prunus.runtime.precision import to_device
from prunus.runtime.processes import model_device
from prunus.runtime.progress import spoken
from prunus.runtime.randomstate import random_state, restore_random_state

TIMED, LONG = 3, 2.0
"""Training steps of which the fastest counts; seconds after which no further one is timed."""
TEACHER = 4 / 3
"""Time of a step with a teacher's forward pass beside forward and backward, against one without."""
FEW = 16
"""Examples that a step is timed with before the work, where a whole batch may be too much."""


@dataclass(frozen=True)
class Duration:
    """Training steps of learning and of recovery, and the seconds that one step takes."""

    learning: int
    recovery: int
    seconds_of_a_step: float

    @property
    def steps(self) -> int:
        """Of both."""
        return self.learning + self.recovery

    @property
    def seconds(self) -> float:
        """Of both."""
        return self.seconds_of_a_step * (self.learning + TEACHER * self.recovery)

    def line(self) -> str:
        """In words."""
        return f"learning and recovery: {self.steps:,} training steps, about {spoken(self.seconds)} here"


def duration_before(
    model: nn.Module,
    data: DataSource,
    method: Method,
    size: int,
    recovery: FinetuneConfig | None,
    groups: int,
    processes: int = 1,
) -> Duration | None:
    """What is to be expected, from few held-out examples; nothing random moves on, and no training batch is taken.

    Args:
        model: the dense network.
        data: what it learns from.
        method: what learns.
        size: examples of a batch.
        recovery: None for none.
        groups: coupled sets of units.
        processes: that share the steps.

    Returns:
        None where nobody knows how many batches there are, where there is nothing to do, or where the memory does not
        hold a step.
    """
    steps = steps_of(method, data, size, recovery, groups)
    if steps is None or not any(steps):
        return None
    inputs = first_of(data.validation, min(size, FEW), model)
    with _nothing_drawn():
        try:
            seconds = seconds_of_a_step(model, inputs) * size / examples_in(inputs)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return None
    learned, recovered = (math.ceil(number / processes) for number in steps)
    return Duration(learned, recovered, seconds)


@contextlib.contextmanager
def _nothing_drawn() -> Iterator[None]:
    stood = random_state()
    try:
        yield
    finally:
        restore_random_state(stood)


@singledispatch
def learning_steps(method: Method, batches: int, groups: int) -> int:
    """Training steps that a method takes."""
    return batches if method.needs_data else 0


@learning_steps.register
def _posterior(method: PosteriorMethod, batches: int, groups: int) -> int:
    return max(method.epochs * batches, method.min_steps)


@learning_steps.register
def _stages(method: StagedMethod, batches: int, groups: int) -> int:
    stages = 1 if method.simultaneous else groups
    return stages * (max(method.epochs * batches, method.min_steps) + method.tune_epochs * batches)


@learning_steps.register
def _masks(method: MaskMethod, batches: int, groups: int) -> int:
    return (method.epochs + method.tune_epochs) * batches


def steps_of(
    method: Method, data: DataSource, size: int, recovery: FinetuneConfig | None, groups: int
) -> tuple[int, int] | None:
    """Of learning, and of recovery in batches of the learning's size."""
    length = length_of(data.train)
    if length is None:
        return None
    batches = math.ceil(length / size) if read_by_number(data.train) else length
    learned = learning_steps(method, batches, groups)
    return learned, 0 if recovery is None else recovery.steps(batches)


def seconds_of_a_step(model: nn.Module, inputs: Any) -> float:
    """Forward and backward pass of a copy; the optimiser's share is small."""
    network = copied(model).requires_grad_(True)
    inputs = to_device(inputs, model_device(model))
    taken: list[float] = []
    while len(taken) < TIMED and sum(taken) < LONG:
        began = time.perf_counter()
        with torch.enable_grad():
            objective = main_output(call(network, inputs)).float().square().mean()
            if objective.requires_grad:  # whoever learns says what is wrong where it does not
                objective.backward()
        if model_device(model).type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken)
