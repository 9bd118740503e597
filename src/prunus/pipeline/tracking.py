"""Experiment trackers by name, through accelerate: TensorBoard, Weights & Biases, trackio, MLflow, ..."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from prunus.errors import ConfigError, MissingDependencyError, first_line
from prunus.files.atomic import StrPath
from prunus.pipeline.journal import Journal
from prunus.runtime.curves import heard_by
from prunus.runtime.processes import accelerator, checked_by_first
from prunus.runtime.progress import Say

PROJECT, LOGS = "prunus", "tracking"


def check_trackers(names: Sequence[str], folder: StrPath | None) -> None:
    """Refuse before the work trackers that are unknown, not installed, or want a folder where there is none.

    Raises:
        ConfigError: an unknown name, or no folder.
        MissingDependencyError: the tracker's package is not installed.
    """
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = {str(one) for one in get_available_trackers()}
    for name in names:
        where = f"track={name}"
        if name not in LOGGER_TYPE_TO_CLASS:
            close = get_close_matches(name, LOGGER_TYPE_TO_CLASS, n=1)
            fix = f"use {close[0]}" if close else f"there are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            raise ConfigError(where, "accelerate knows no such tracker", fix)
        builtin = LOGGER_TYPE_TO_CLASS[name].__module__.startswith("accelerate.")
        if builtin and name not in installed:
            raise MissingDependencyError(where, "the tracker is not installed", f"pip install {name}")
        if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory and folder is None:
            raise ConfigError(where, "it writes into the run's folder, and there is none", "give out=")


@contextmanager
def tracked(account: Journal, names: Sequence[str], settings: Callable[[], Mapping[str, str]]) -> Iterator[None]:
    """Within the context the numbers of a run go into its journal, and to trackers from its settings to its end.

    Args:
        account: of the run; trackers that write files do it in `tracking/` of its folder.
        names: of trackers as accelerate knows them; checked, see `check_trackers`.
        settings: gives what the run is made from.

    Raises:
        ConfigError: a tracker that does not start.
    """
    with heard_by(account.point):
        if not names:
            yield
            return
        trackers = Trackers(account.say)
        checked_by_first(lambda: trackers.start(names, account.out, settings()))
        try:
            with heard_by(trackers.point):
                yield
        finally:
            trackers.finish()


@dataclass
class Trackers:
    """Those of a run under way, on rank 0; one that fails is named and left out, and the run goes on."""

    say: Say
    under_way: dict[str, Any] = field(default_factory=dict)
    points: int = 0

    def start(self, names: Sequence[str], folder: Path | None, settings: Mapping[str, str]) -> None:
        """Start them. Raises ConfigError if one does not."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        for name in dict.fromkeys(names):
            kind = LOGGER_TYPE_TO_CLASS[name]
            place = (str(folder / LOGS),) if kind.requires_logging_directory and folder is not None else ()
            try:
                made = kind(PROJECT, *place)
                with accelerator():  # trackers ask its state who is first
                    made.start()
                    made.store_init_configuration(dict(settings))
            except Exception as error:
                what = f"it does not start: {first_line(error)}"
                raise ConfigError(f"track={name}", what, f"set {name} up as it says, or leave it out") from error
            self.under_way[name] = made

    def point(self, curve: str, value: float, at: int) -> None:
        """Log a number; its place along the curve stands beside it, since steps of a tracker may only grow."""
        if math.isfinite(value):
            self._each("log", {curve: value, f"{curve.partition('/')[0]}/at": at}, self.points)
            self.points += 1

    def finish(self) -> None:
        """End them all."""
        self._each("finish")

    def _each(self, action: str, *values: Any) -> None:
        for name, tracker in list(self.under_way.items()):
            try:
                with accelerator():
                    getattr(tracker, action)(*values)
            except Exception as error:  # of a service that isn't ours: no run may be lost to it
                del self.under_way[name]
                self.say(f"no more is tracked by {name}: {first_line(error)}")
