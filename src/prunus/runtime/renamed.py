"""Keywords of earlier releases: they go on working for one more, with a warning that shows the new spelling."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from prunus.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Renamed:
    """A keyword that has taken the place of older ones.

    Attributes:
        now: the keyword.
        old: those that it replaces.
        becomes: its value, made of the old ones' that were given, by name, and of its own (None if it was not given).
        joins: an old one may stand beside the new one, to which it adds something.
    """

    now: str
    old: tuple[str, ...]
    becomes: Callable[[Mapping[str, Any], Any], Any]
    joins: bool = False


def another_word(now: str, *old: str) -> Renamed:
    """A keyword that means what older ones did, value for value."""
    return Renamed(now, old, lambda given, _: next(iter(given.values())))


def renamed(*keywords: Renamed) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a function take old keywords too. None and False say nothing, as their absence did.

    Raises (the function, besides its own):
        ConfigError: an old keyword together with the one that took its place.

    Warns:
        DeprecationWarning: an old keyword, with how the same is written now.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = getattr(function, "__name__", "function")

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            for keyword in keywords:
                given = {n: kwargs.pop(n) for n in keyword.old if n in kwargs}
                if not given:
                    continue
                told, present = ", ".join(f"{n}=" for n in given), kwargs.get(keyword.now)
                said = {n: v for n, v in given.items() if v is not None and v is not False}
                if said and present is not None and present != () and not keyword.joins:
                    fix = f"give {keyword.now} alone: it is what {told} was"
                    raise ConfigError(f"{name}({told} {keyword.now}=)", "both say the same thing", fix)
                if said:
                    kwargs[keyword.now] = keyword.becomes(said, present)
                new = f"{keyword.now}={_shown(kwargs[keyword.now])}" if said else f"nothing, or {keyword.now}=..."
                what = f"{name}({told}...) goes with the next release: write {new}"
                warnings.warn(what, DeprecationWarning, stacklevel=2)
            return function(*args, **kwargs)

        return called

    return decorate


def _shown(value: Any) -> str:
    """A value as it is written in a call; data would fill the screen."""
    return repr(value) if isinstance(value, str | int | float | tuple | dict) else "..."
