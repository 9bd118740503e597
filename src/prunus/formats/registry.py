"""The registry of exporters: each writes a finished model in one form and says how well the file agrees with it.

An exporter is a function with the decorator `exporter` in a file of this folder, or of anybody's package.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from prunus.errors import ConfigError, ExportError
from prunus.files.atomic import StrPath, real_path, refusing, staging, sync_folder
from prunus.masks.file import LayerMask
from prunus.plan.plan import Plan
from prunus.runtime.extras import there


@dataclass(frozen=True)
class Exportable:
    """A finished model, with what is known about it.

    Attributes:
        model: the model, in its own class or loaded from an artifact.
        example_inputs: inputs to export with, batch first.
        plan: how it was made smaller, if it was.
        masks: what is kept inside its weights, by layer.
        grids: names of layers whose inputs lie on 8-bit grids that are not in the model.
        batch: more inputs of the same form to compare on; None takes the example inputs.
        origin: spec of the model it was made from (`hf:NAME_OR_DIR`, ...), if known.
        data: spec of the data that it was judged on, if known.
    """

    model: nn.Module
    example_inputs: Any = field(repr=False)
    plan: Plan | None = field(default=None, repr=False)
    masks: Mapping[str, LayerMask] = field(default_factory=dict, repr=False)
    grids: tuple[str, ...] = ()
    batch: Any = field(default=None, repr=False)
    origin: str = ""
    data: str = ""


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote.

    Attributes:
        path: the file or folder.
        error: difference from the model, as `note` says; None if nothing was compared.
        note: one line for the user.
    """

    path: Path
    error: float | None
    note: str


@dataclass(frozen=True)
class Exporter:
    """One form in which a model leaves.

    Attributes:
        name: what it is called on the command line.
        file: the name of its file or folder in a run's folder; its suffix tells files of this form.
        help: one line that says what it is.
        write: fills the path that it is given, which is free.
        check: raises what can be known before any work, such as MissingDependencyError.
        suits: whether a run writes it without being asked.
        modules: that it imports besides torch.
    """

    name: str
    file: str
    help: str
    write: Callable[[Exportable, Path], Exported]
    check: Callable[[], object]
    suits: Callable[[Exportable], bool]
    modules: tuple[str, ...] = ()

    def works(self) -> bool:
        """Whether what it needs is installed; nothing is imported for that."""
        return all(map(there, self.modules))

    def __call__(self, subject: Exportable, path: StrPath) -> Exported:
        """Write a file or folder, which appears only when it is whole; a file that is there is replaced.

        Raises:
            MissingDependencyError: a package is not installed.
            ConfigError: the model is none that can leave in this form.
            ExportError: the file does not agree with the model, or can't be written.
        """
        self.check()
        target = real_path(path)
        with refusing(target, ExportError):
            if target.is_dir() and any(target.iterdir()):
                raise ExportError(str(target), "the folder exists and is not empty", "choose another name")
            target.parent.mkdir(parents=True, exist_ok=True)
            with staging(target.parent) as temporary:
                done = self.write(subject, temporary)
                if target.is_file():
                    shutil.copymode(target, temporary)
                elif target.is_dir():
                    target.rmdir()
                temporary.replace(target)
                sync_folder(target.parent)
        return Exported(Path(path), done.error, done.note)


COMPARED = 64
"""Held-out examples that an exported file is calibrated and compared on."""
EXPORTERS: dict[str, Exporter] = {}


def exporter(
    name: str,
    *,
    file: str,
    help: str,
    check: Callable[[], object] = lambda: None,
    suits: Callable[[Exportable], bool] = lambda _: False,
    modules: tuple[str, ...] = (),
) -> Callable[[Callable[[Exportable, Path], Exported]], Exporter]:
    """A decorator that registers a function as an exporter; see `Exporter` for what is given.

    Raises:
        ConfigError: the name is taken.
    """
    if name in EXPORTERS:
        raise ConfigError(f"exporter {name!r}", "there is one of that name", "choose another name")

    def registered(write: Callable[[Exportable, Path], Exported]) -> Exporter:
        EXPORTERS[name] = Exporter(name, file, help, write, check, suits, modules)
        return EXPORTERS[name]

    return registered


def exporter_for(path: Path) -> Exporter:
    """The first exporter whose files have this suffix. Raises ConfigError if there is none."""
    for found in EXPORTERS.values():
        if path.suffix and Path(found.file).suffix == path.suffix:
            return found
    suffixes = dict.fromkeys(suffix for e in EXPORTERS.values() if (suffix := Path(e.file).suffix))
    fix = f"name it {' or '.join(suffixes)}, or say which of {', '.join(EXPORTERS)} with --as"
    raise ConfigError(str(path), "unknown kind of file", fix)
