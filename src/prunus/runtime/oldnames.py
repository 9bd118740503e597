"""Names of earlier releases: classes and modules go on answering to them for one more, with a warning."""

from __future__ import annotations

import inspect
import sys
import warnings
from abc import ABCMeta
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from prunus.errors import ConfigError


class OldNames:
    """Base of classes whose objects answer to old names of their attributes.

    Attributes:
        renamed: old name -> the one that took its place.

    Warns:
        DeprecationWarning: an old name, with the new one.
    """

    renamed: ClassVar[Mapping[str, str]] = {}

    if not TYPE_CHECKING:  # a type checker would let every misspelt name pass

        def __getattr__(self, name: str) -> Any:
            now = type(self).renamed.get(name)
            if now is None:
                return object.__getattribute__(self, name)  # fails again, with the error of what failed
            warn_of_old(f"{type(self).__name__}.{name}", now, stacklevel=3)
            return getattr(self, now)


class OldSettings(ABCMeta):
    """Classes of dataclasses that can be made with the old names of their fields too; see `OldNames`."""

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        """An object, made of settings under either name."""
        return super().__call__(*args, **_newly_named(cls, settings))

    @property
    def __signature__(cls) -> inspect.Signature:
        """Of the new names; without it `help` would show that of `__call__`."""
        _, *settings = inspect.signature(inspect.getattr_static(cls, "__init__")).parameters.values()
        return inspect.Signature(settings)


def old_functions(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__`: what it defines can be had by its old names too.

    Args:
        module: its `__name__`.
        renamed: old name -> the one that took its place.
    """

    def look_up(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_of_old(f"{module}.{name}", renamed[name], stacklevel=3)
        return getattr(sys.modules[module], renamed[name])

    return look_up


def warn_of_old(what: str, now: str, stacklevel: int) -> None:
    """Warn that a name goes with the next release; `stacklevel` is that of `warnings.warn`."""
    warnings.warn(f"{what} goes with the next release: write {now}", DeprecationWarning, stacklevel=stacklevel)


def adopt_old_definitions_(kind: type[OldNames]) -> None:
    """What a class's own body defines under an old name, method or default, it has under the new one.

    Warns:
        DeprecationWarning: an old name, with the new one.
    """
    for old, now in kind.renamed.items():
        if old not in kind.__dict__:
            continue
        warn_of_old(f"{kind.__name__}.{old}", now, stacklevel=6)
        if old in (notes := inspect.get_annotations(kind)):
            kind.__annotations__ = {now if name == old else name: note for name, note in notes.items()}
        setattr(kind, now, kind.__dict__[old])
        delattr(kind, old)


def _newly_named(kind: Any, settings: dict[str, Any]) -> dict[str, Any]:
    old = [name for name in settings if name in kind.renamed]
    if not old:
        return settings
    named = {name: value for name, value in settings.items() if name not in old}
    # `dataclasses.replace` hands over every field, so the old name stands beside what it shall replace.
    replaces = {f.name for f in fields(kind) if f.init} <= set(settings)
    for name in old:
        now = kind.renamed[name]
        if now in named and not replaces:
            raise ConfigError(f"{kind.__name__}({name}=, {now}=)", "both say the same thing", f"give {now} alone")
        warn_of_old(f"{kind.__name__}({name}=...)", f"{now}={settings[name]!r}", stacklevel=4)
        named[now] = settings[name]
    return named
