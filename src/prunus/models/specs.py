"""`FILE.py:name` and `package.module:name`: the object that a spec names."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from prunus.errors import ConfigError, PruneError


def resolve(spec: str, forms: str) -> Any:
    """The object that `FILE.py:name` or `package.module:name` names; `forms` says in a refusal what could be written.

    Raises:
        ConfigError: a spec of no known form, a file or module that can't be imported, or no such name in it.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise ConfigError(f"spec {spec!r}", "not of a known form", f"use {forms}")
    module = _load_file(Path(place), spec) if place.endswith(".py") else _load_module(place, spec, forms)
    target: Any = module
    for part in name.split("."):
        if not hasattr(target, part):
            public = ", ".join(sorted(n for n in vars(module) if not n.startswith("_")))[:200]
            raise ConfigError(f"spec {spec!r}", f"{place} has no {name!r}", f"choose from: {public}")
        target = getattr(target, part)
    return target


def _load_file(path: Path, spec: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(f"spec {spec!r}", f"there is no file {path}", "check the path")
    name = f"prunus_spec_{path.stem}_{zlib.crc32(str(path).encode()):x}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ConfigError(f"spec {spec!r}", "not a Python file", "give a file that Python can import")
    module = importlib.util.module_from_spec(found)
    # Pickling and dataclasses look a class's module up by name.
    sys.modules[name] = module
    with _importable(path.parent):
        try:
            found.loader.exec_module(module)
        except PruneError:
            del sys.modules[name]
            raise
        except Exception as error:
            del sys.modules[name]
            what = f"running the file failed: {type(error).__name__}: {error}"
            raise ConfigError(f"spec {spec!r}", what, "make the file importable") from error
    return module


def _load_module(name: str, spec: str, forms: str) -> ModuleType:
    with _importable(Path.cwd()):
        try:
            return importlib.import_module(name)
        except PruneError:
            raise
        except Exception as error:
            what = f"importing {name} failed: {type(error).__name__}: {error}"
            raise ConfigError(f"spec {spec!r}", what, f"use {forms}") from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let imports see a folder, as `python FILE.py` would."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def call(target: Any, spec: str, /, **offered: Any) -> Any:
    """Call what a spec names, with those of the offered arguments that it has parameters for.

    Raises:
        ConfigError: not callable, or the call failed.
    """
    if not callable(target):
        raise ConfigError(f"spec {spec!r}", f"it names a {type(target).__name__}", "name a callable")
    try:
        accepted = inspect.signature(target).parameters
        return target(**{k: v for k, v in offered.items() if k in accepted})
    except PruneError:
        raise
    except Exception as error:
        what = f"calling it failed: {type(error).__name__}: {error}, in {_place(error)}"
        fix = "mend it there" if _place(error) != "the call" else "make it callable without arguments"
        raise ConfigError(f"spec {spec!r}", what, fix) from error


def _place(error: Exception) -> str:
    """Where in the user's file an error came from: the last line of it that was being run."""
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    return f"{lines[0].filename}, line {lines[0].lineno}" if lines else "the call"
