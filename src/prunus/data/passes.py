"""Loops over batches that an interrupted run goes on with, bit for bit: epochs, the steps of each, what they change."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch

from prunus.data.batches import Loader
from prunus.files.steps import MadeFrom, Stateful, Steps
from prunus.runtime import stopping
from prunus.runtime.randomstate import Plain, random_state, restore_random_state


class Loop:
    """The position in a loop over epochs and steps, and everything that its steps change.

    Batches have to come in an order that is a function of the epoch (`set_epoch`), of the global random generators, or
    of generators that the loader or its samplers hold. Those that were seen are passed over.

    Args:
        steps: where the position is saved; None: nowhere.
        name: of the loop's file.
        made_from: what went into the loop.
        batches: what is looped over.
        parts: what the steps change, by name.
        values: numbers, tensors, texts and sequences of them that the steps change; taken back in place.

    Attributes:
        epoch: epochs done, `step` steps of the next one.
    """

    def __init__(
        self,
        steps: Steps | None,
        name: str,
        made_from: MadeFrom,
        batches: Loader,
        parts: Mapping[str, Stateful],
        values: MutableMapping[str, Any],
    ) -> None:
        self.steps, self.name, self.made_from = steps, name, made_from
        self.batches, self.parts, self.values = batches, parts, values
        self.position, self.epoch, self.step = Position(batches), 0, 0
        self._began: Plain | None = None
        self._now: Plain | None = None
        found = None if steps is None else steps.read(name, made_from)
        if found is not None:
            self._take(found)

    @property
    def resumed(self) -> bool:
        """Whether some of it was done before."""
        return bool(self.epoch or self.step)

    def epochs(self, numbers: Sequence[int]) -> Iterator[int]:
        """Those that are not done yet; at the end of each, and of all, the position is saved."""
        if self._now is not None and not self.step:  # at the beginning of an epoch, or at the end of all
            self.position.load_state_dict(self._now)
        if self.steps is not None:
            stopping.step_begins()
        last = len(numbers)
        for number in numbers[self.epoch :]:
            yield number
            self.epoch, self.step = self.epoch + 1, 0
            self._save(always=self.epoch == last)
        if self.steps is not None:
            stopping.steps_over()

    def within(self, epoch: int) -> Iterator[tuple[int, Any]]:
        """Numbers and batches of the steps of an epoch that are not done yet."""
        self.batches.set_epoch(epoch)
        if not self.step:
            self._began = self.position.state_dict()
            yield from self._counted(iter(self.batches), 0)
            return
        assert self._began is not None
        assert self._now is not None
        self.position.load_state_dict(self._began)
        self.batches.set_epoch(epoch)
        batches = iter(self.batches)
        for _ in itertools.islice(batches, self.step):
            pass  # seen before
        self.position.load_state_dict(self._now)
        yield from self._counted(batches, self.step)

    def _counted(self, batches: Iterator[Any], start: int) -> Iterator[tuple[int, Any]]:
        for number, batch in enumerate(batches, start):
            yield number, batch
            self.step = number + 1
            self._save(always=False)

    def _save(self, *, always: bool) -> None:
        if self.steps is None:
            return
        if always or stopping.asked() or self.steps.due():
            self.steps.write(self.name, self.made_from, self.content())
        stopping.check()

    def content(self) -> Plain:
        """The position and everything that the steps change, as plain data."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "began": self._began if self.step else None,
            "now": self.position.state_dict(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "values": dict(self.values),
        }

    def _take(self, found: Plain) -> None:
        self.epoch, self.step = found["epoch"], found["step"]
        self._began, self._now = found["began"], found["now"]
        for name, part in self.parts.items():
            part.load_state_dict(found["parts"][name])
        for name, value in found["values"].items():
            held = self.values[name]
            self.values[name] = value.to(held.device) if isinstance(value, torch.Tensor) else value


class Position:
    """Where whatever orders batches stands: the global random generators, the loader's own, and its epoch."""

    def __init__(self, batches: Loader) -> None:
        self.batches = batches

    def state_dict(self) -> Plain:
        """As plain data."""
        return {"random": random_state(), "loader": loader_state(self.batches)}

    def load_state_dict(self, state: Plain) -> None:
        """Go on from there."""
        restore_random_state(state["random"])
        restore_loader(self.batches, state["loader"])


def loader_state(batches: Loader) -> Plain:
    """The epoch that whatever shuffles the batches was told last, and where its own generators stand."""
    epochs = [e for place in batches.places() if isinstance(e := getattr(place, "epoch", None), int)]
    return {"epoch": epochs[0] if epochs else None, "generators": [g.get_state() for g in _generators(batches)]}


def restore_loader(batches: Loader, state: Plain) -> None:
    """Put it back as `loader_state` found it."""
    if state["epoch"] is not None:
        batches.set_epoch(state["epoch"])
    for generator, stood in zip(_generators(batches), state["generators"], strict=False):
        generator.set_state(stood)


def _generators(batches: Loader) -> list[torch.Generator]:
    held = [getattr(place, "generator", None) for place in batches.places()]
    return list({id(g): g for g in held if isinstance(g, torch.Generator)}.values())
