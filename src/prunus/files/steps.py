"""Finished steps of a run, and loops under way, each in a file that is keyed by what went into it.

OUT/steps/
  scores-8f0c...e1.pt    what a finished step made
  recovery-77a1...0b.pt  where a loop stood when it was last saved

A file is whole at any time and read as plain data (`files.resumable`). What went in is in its name as a digest and in
its content as words, so that a step that anything else went into is another file: it is not found, and made anew.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from prunus.errors import ArtifactError
from prunus.files.fingerprint import data_digest, tree_digest
from prunus.files.resumable import read_checked, write_checked

FORMAT = "prunus-step-1"
NAME = re.compile(r"([a-z_]+)-[0-9a-f]{16}\.pt")
LASTING = ("dense", "scores", "tables")
"""Steps that another target of the same network asks for again."""
SHARE = 0.02
"""Of the time, what saving a loop may take."""


class Stateful(Protocol):
    """A module, an optimiser: whatever tells its state as plain data and takes it back."""

    def state_dict(self) -> Any:
        """Its state."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Take a state."""
        ...


MadeFrom = Mapping[str, str]
"""What went into a step, by kind: digests, or words."""


@dataclass
class Steps:
    """Where a run keeps what it has finished.

    Attributes:
        folder: of the files.
        resume: take what is there; otherwise everything is made anew.
        every: seconds after which a loop under way is saved, more where saving takes long; 0: after every step.
        say: receives a line about every step that is taken from the folder.
        told: receives the same as data: what happened, to which step, and what else is known.
        moved: what steps move on besides what they make: random generators, by name.
    """

    folder: Path
    resume: bool = False
    every: float = 60.0
    say: Callable[[str], None] = field(default=lambda _: None, repr=False)
    told: Callable[..., None] = field(default=lambda *_, **__: None, repr=False)
    moved: dict[str, Stateful] = field(default_factory=dict, repr=False)
    _used: set[str] = field(default_factory=set, repr=False)
    _digests: dict[int, tuple[Any, str]] = field(default_factory=dict, repr=False)
    _saved: float = field(default_factory=time.monotonic, repr=False)
    _took: float = 0.0

    def digest_of(self, data: Any) -> str:
        """`data_digest`, found once for every object."""
        held, found = self._digests.get(id(data), (None, ""))
        if held is not data:
            found = data_digest(data)
            self._digests[id(data)] = (data, found)
        return found

    def path(self, name: str, made_from: MadeFrom) -> Path:
        """The file of a step."""
        return self.folder / f"{name}-{tree_digest(dict(made_from))[:16]}.pt"

    def finished(self, name: str, made_from: MadeFrom) -> dict[str, Any] | None:
        """What a step made when it was finished, if that was kept; what it moved on then stands where it left it."""
        content = self.read(name, made_from)
        if content is None:
            return None
        for part, stood in content["moved"].items():
            if part in self.moved:
                self.moved[part].load_state_dict(stood)
        self.say(f"{name}: finished before, taken from {self.folder}")
        self.told("taken", name)
        return dict(content["made"])

    def finish(self, name: str, made_from: MadeFrom, made: Mapping[str, Any]) -> None:
        """Keep what a step made. Raises ArtifactError if it can't be written."""
        self.write(name, made_from, {"made": dict(made), "moved": {n: p.state_dict() for n, p in self.moved.items()}})
        self.told("finished", name)

    def read(self, name: str, made_from: MadeFrom) -> dict[str, Any] | None:
        """The content of a file, if it is there and to be taken; one that is damaged is named and made anew."""
        path = self.path(name, made_from)
        self._used.add(path.name)
        if not self.resume or not path.is_file():
            return None
        try:
            content = read_checked(path, FORMAT, ("made_from",))
        except ArtifactError as error:
            self.say(f"{path.name} is made anew: {error.what}")
            return None
        return content if content["made_from"] == dict(made_from) else None

    def write(self, name: str, made_from: MadeFrom, content: Mapping[str, Any]) -> None:
        """Write a file. Raises ArtifactError if that fails; an older one stays."""
        path, began = self.path(name, made_from), time.monotonic()
        self._used.add(path.name)
        write_checked(path, FORMAT, {"made_from": dict(made_from), **content})
        self._saved = time.monotonic()
        self._took = self._saved - began

    def due(self) -> bool:
        """Whether a loop under way should be saved."""
        return not self.every or time.monotonic() - self._saved >= max(self.every, self._took / SHARE)

    def forget(self, *names: str) -> None:
        """Remove what is kept under these names."""
        self._remove(lambda name, _: name in names)

    def tidy(self) -> None:
        """Remove what this run did not use, but not what another target asks for."""
        self._remove(lambda name, file: name not in LASTING and file not in self._used)

    def clear(self) -> None:
        """Remove all of it."""
        self._remove(lambda *_: True)

    def _remove(self, chosen: Callable[[str, str], bool]) -> None:
        found = list(self.folder.iterdir()) if self.folder.is_dir() else []
        for path in found:
            named = NAME.fullmatch(path.name)
            if named is not None and chosen(named[1], path.name):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
