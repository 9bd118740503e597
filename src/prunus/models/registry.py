"""Kinds of specs, such as `timm:NAME` or `mnist:DIR`: each registers itself, with how it is written and a line of help.

Help texts, docstrings and refusals are made from what is registered.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from prunus.errors import ConfigError

Load = TypeVar("Load", bound=Callable[..., Any])
Documented = TypeVar("Documented", bound=Callable[..., Any])


@dataclass(frozen=True)
class SpecKind(Generic[Load]):
    """One kind of spec.

    Attributes:
        form: how a spec is written: `timm:NAME`, `digits`, ...
        help: one line that says what it is.
        load: gets what stands behind the colon (an empty text where the form has none), or the whole spec if it is the
            kind for all others.
    """

    form: str
    help: str
    load: Load


class SpecRegistry(Generic[Load]):
    """Kinds of specs by the word before the colon."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self.kinds: dict[str, SpecKind[Load]] = {}

    def register(self, name: str, *, form: str, help: str) -> Callable[[Load], Load]:
        """A decorator that registers a function as the one that loads specs of this kind.

        Args:
            name: the word before the colon; empty for every spec that no other kind takes.
            form: how such a spec is written; with a colon if something stands behind the name.
            help: one line that says what it is.

        Raises:
            ConfigError: the name is taken.
        """
        if name in self.kinds:
            fix = "choose another name"
            raise ConfigError(f"{self.noun} source {name!r}", f"{self.kinds[name].form} has that name", fix)

        def registered(load: Load) -> Load:
            self.kinds[name] = SpecKind(form, help, load)
            return load

        return registered

    def find(self, spec: str) -> tuple[Load, str]:
        """The function that loads a spec, and what to give it.

        Raises:
            ConfigError: no kind takes the spec.
        """
        name, _, rest = spec.partition(":")
        kind = self.kinds.get(name) if name else None
        if kind is not None and bool(rest) == (":" in kind.form):
            return kind.load, rest
        if "" in self.kinds:
            return self.kinds[""].load, spec
        raise ConfigError(f"{self.noun} {spec!r}", "not of a known form", f"use {self.forms()}")

    def forms(self) -> str:
        """How specs are written, in one line; the kind for all others comes last."""
        return ", ".join(kind.form for kind in self._ordered())

    def lines(self, indent: int = 0) -> str:
        """One line for each kind, with its help; all but the first are indented by so many spaces."""
        return ("\n" + " " * indent).join(f"`{kind.form}`: {kind.help}" for kind in self._ordered())

    def documents(self, function: Documented) -> Documented:
        """A decorator that writes the kinds in the place of `{kinds}` in a docstring."""
        text = function.__doc__ or ""
        line = next((line for line in text.splitlines() if "{kinds}" in line), "")
        function.__doc__ = text.replace("{kinds}", self.lines(indent=len(line) - len(line.lstrip())))
        return function

    def _ordered(self) -> list[SpecKind[Load]]:
        """What needs no place first, the kind for all others last."""
        return [kind for _, kind in sorted(self.kinds.items(), key=lambda k: (not k[0], ":" in k[1].form, k[0]))]


def import_all(package: str) -> None:
    """Import every file of a folder, so that what registers itself there is known: a new kind is one file."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
