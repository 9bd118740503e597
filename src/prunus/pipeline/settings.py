"""How a run is carried out, apart from what it does to the network."""

from __future__ import annotations

from dataclasses import dataclass

from prunus.plan.setup import Runtime
from prunus.runtime.fields import check_fields
from prunus.runtime.progress import Say
from prunus.runtime.ranges import Count, NonNegative


def silent(_: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class RunSettings:
    """What `compress` is rarely told.

    Attributes:
        batch_size: examples per step of the learning; None takes 64, or 128 for methods that train the weights along
            with masks inside them. The recovery has a batch size of its own.
        resume: take what a run in this folder has finished, where the same went into it, and go on from there; what
            another target doesn't change (scores, measured losses) serves it too.
        force: replace another run that the folder holds.
        save_every: seconds between two savings of a loop under way, more where they would take over 2 % of the time;
            0: after every step.
        modes: ways to run that are timed before and after; of masked weights eager mode alone.
        say: receives a line of text at every step.
        track: experiment trackers, by accelerate's names (`tensorboard`, `wandb`, `trackio`, `mlflow`, ...): settings,
            the loss of every epoch and what networks were judged by. The same is in `steps/events.jsonl` anyway.
        features: keep three validation inputs in the folder, with what channels see of them, for the report.

    Example:
        >>> RunSettings(batch_size=32, modes=("eager",), say=print).resume
        False
    """

    batch_size: Count | None = None
    resume: bool = False
    force: bool = False
    save_every: NonNegative = 60.0
    modes: tuple[Runtime, ...] = ("eager", "onnx")
    say: Say = silent
    track: tuple[str, ...] = ()
    features: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
