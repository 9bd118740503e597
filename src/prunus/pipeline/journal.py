"""What a run folder holds besides the result: what the run was made from, what it said and did, what it has finished.

OUT/steps/
  run.json        what went in, by kind, and whether the run is over
  log.txt         what was said, with the time
  events.jsonl    what happened, for programs
  *.pt            finished steps, and loops under way (`files.steps`)
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus.errors import ArtifactError, PruneError
from prunus.files.atomic import StrPath, real_path, write_text
from prunus.files.decoding import Malformed, parse_json
from prunus.files.jsontext import strict_json
from prunus.files.steps import Steps
from prunus.formats.run import ARTIFACT
from prunus.pipeline.settings import RunSettings
from prunus.runtime.processes import checked_by_first, distributed, rank
from prunus.runtime.progress import Say
from prunus.runtime.stopping import Terminated, stoppable

FOLDER, RUN, LOG, EVENTS = "steps", "run.json", "log.txt", "events.jsonl"
FORMAT = "prunus-run-1"
HIDDEN = "."
"""Names of files that a writer had not finished begin so."""


@dataclass
class Journal:
    """The account of a run under way.

    Attributes:
        out: the run's folder; None: there is none, and nothing is written.
        tell: receives what is said.
        steps: what is finished; None where several processes share the work.
    """

    out: Path | None
    tell: Say = field(repr=False)
    steps: Steps | None = None

    def say(self, text: str) -> None:
        """Say a line, and write it down."""
        self.tell(text)
        self._append(LOG, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def event(self, kind: str, what: str = "", **more: Any) -> None:
        """Write down that something happened."""
        entry = {"time": round(time.time(), 3), "event": kind, **({"step": what} if what else {}), **more}
        self._append(EVENTS, json.dumps(entry))

    def point(self, curve: str, value: float, at: int) -> None:
        """Write down a number of a curve."""
        self.event("point", curve=curve, value=value if math.isfinite(value) else None, at=at)

    def _append(self, name: str, line: str) -> None:
        if self.out is None or rank() != 0:
            return
        try:
            with (self.out / FOLDER / name).open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:  # a full disk is refused where the result is written
            self.out = None
            self.tell(f"no more is written into {name}: {error.strerror}")


@contextlib.contextmanager
def journal(out: StrPath | None, made_from: Callable[[], Mapping[str, str]], run: RunSettings) -> Iterator[Journal]:
    """The account of a run into a folder, from its beginning to its end; SIGINT and SIGTERM wait for the step.

    Args:
        out: the folder; None for none.
        made_from: gives what goes into the run, by kind.
        run: whether it goes on, or replaces another.

    Raises:
        ArtifactError: the folder holds another run, or something that no run made is in the way.
    """
    if out is None:
        yield Journal(None, run.say)
        return
    folder, origin = real_path(out), dict(made_from())
    checked_by_first(lambda: check_place(folder, origin, run))
    kept = Journal(folder, run.say)
    if not distributed():
        kept.steps = Steps(folder / FOLDER, run.resume, run.save_every, kept.say, kept.event)
    new = [p for p in (folder / FOLDER, *(folder / FOLDER).parents) if not p.exists()]
    _begin(folder, origin, kept, run)
    if run.resume and kept.steps is None:
        kept.say("several processes keep no steps: but for the stages of methods that have some, all is done anew")
    try:
        with stoppable():
            yield kept
    except (KeyboardInterrupt, Terminated) as stop:
        kept.event("stopped", signal=type(stop).__name__)
        kept.say(
            f"stopped; what is finished is kept in {folder / FOLDER}: the same again with resume goes on from there"
        )
        raise
    except PruneError as refusal:
        kept.event("refused", where=refusal.where, what=refusal.what)
        if rank() == 0 and not holds_work(folder):
            _undo(folder, new)
        raise
    if rank() == 0:
        write_text(folder / FOLDER / RUN, _described(origin, "finished"))
        kept.event("finished")
        if kept.steps is not None:
            kept.steps.tidy()


def check_place(folder: Path, origin: Mapping[str, str], run: RunSettings) -> None:
    """Refuse a folder with another run in it, unless it is to be replaced or gone on with.

    Raises:
        ArtifactError: the folder holds another run, or something that no run made is in the way.
    """
    place = folder / FOLDER
    if place.exists() and not place.is_dir():
        raise ArtifactError(
            str(place), "a file stands where the steps belong", "move it away, or choose another folder"
        )
    there = [p for p in place.iterdir() if not p.name.startswith(HIDDEN)] if place.is_dir() else []
    if there and not (place / RUN).is_file():
        what = f"it holds {there[0].name!r}, and no run wrote it"
        raise ArtifactError(str(place), what, "move it away, or choose another folder")
    if run.force or run.resume or not holds_work(folder):
        return
    fix = "choose another folder, or replace it with force=True (--force)"
    if not there:
        raise ArtifactError(str(folder), "it holds a result, and it is not written there what from", fix)
    other = read_origin(place / RUN)
    different = [
        f"{k}: {other.get(k) or 'none'} there, {v or 'none'} here" for k, v in origin.items() if other.get(k) != v
    ]
    if different:
        what = f"it holds another run ({'; '.join(different)})"
        raise ArtifactError(str(folder), what, f"{fix}, or reuse what fits of it with resume=True (--resume)")


def holds_work(folder: Path) -> bool:
    """Whether a run has left a result there, or a step that took it some work."""
    steps = (path.name for path in (folder / FOLDER).glob("*.pt"))
    return (folder / ARTIFACT).exists() or any(not name.startswith("dense-") for name in steps)


def _undo(folder: Path, new: Sequence[Path]) -> None:
    """Leave no trace of a run that was refused before it finished anything, nor the folders that are new with it."""
    place = folder / FOLDER
    for path in (place / RUN, place / LOG, place / EVENTS, *place.glob("dense-*.pt")):
        path.unlink(missing_ok=True)
    for made in new:
        with contextlib.suppress(OSError):  # there is more in it
            made.rmdir()


def read_origin(path: Path) -> dict[str, str]:
    """What the run in a folder was made from. Raises ArtifactError if the file can't be read."""
    try:
        data = parse_json(path.read_bytes())
        if data["format"] != FORMAT:
            raise Malformed(f"its format is {data['format']!r}")
        return {str(k): str(v) for k, v in data["made_from"].items()}
    except (Malformed, KeyError, TypeError, AttributeError, OSError) as error:
        fix = "replace the run with force=True (--force), or choose another folder"
        raise ArtifactError(str(path), f"it cannot be read: {error}", fix) from error


def _begin(folder: Path, origin: Mapping[str, str], kept: Journal, run: RunSettings) -> None:
    """Write down what the run is made from; unless it goes on, what was there of another goes."""
    if rank() != 0:
        return
    place = folder / FOLDER
    write_text(place / RUN, _described(origin, "under way"))
    if not run.resume:
        for name in (LOG, EVENTS):
            (place / name).unlink(missing_ok=True)
        if kept.steps is not None:
            kept.steps.clear()
    kept.event("resumed" if run.resume else "started")


def _described(origin: Mapping[str, str], status: str) -> str:
    return strict_json({"format": FORMAT, "status": status, "made_from": dict(origin)}, RUN)
