"""A method's settings given as text: `beta=10`, `train_weights=none`, `temperature=5,0.5`."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from prunus.errors import ConfigError
from prunus.runtime.fields import hints_of, named
from prunus.runtime.oldnames import warn_of_old

Configuration = TypeVar("Configuration")


def configure(kind: type[Configuration], settings: Sequence[str]) -> Configuration:
    """A method's configuration from settings as text.

    Args:
        kind: the dataclass of the method.
        settings: each NAME=VALUE; elements of a tuple are separated by commas.

    Raises:
        ConfigError: an unknown or repeated name, or a value that is not of the field's type or range.

    Warns:
        DeprecationWarning: a name that the setting had in an earlier release.
    """
    found = values_of(kind, settings)
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    for name in needed:
        if name not in found:
            hint = named(hints_of(kind)[name])
            raise ConfigError(f"{kind.__name__}.{name}", "it has no default and no value", f"set it: {hint}")
    return kind(**found)


def values_of(kind: type[Any], settings: Sequence[str], without: Container[str] = ()) -> dict[str, Any]:
    """Settings as text, as values of the fields of `kind` but those `without`; see `configure`."""
    hints = hints_of(kind)
    allowed = {f.name: f for f in fields(kind) if f.name not in without}  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        name = _present(kind, name)
        where = f"setting {setting!r}"
        if not equals or not text:
            raise ConfigError(where, "it must be NAME=VALUE", _advice(name, allowed))
        if name not in allowed:
            raise ConfigError(where, f"{kind.__name__} has no {name!r}", _advice(name, allowed))
        if name in found:
            raise ConfigError(where, f"{name} is set twice", "set it once")
        try:
            found[name] = _value(text, hints[name])
        except (ValueError, TypeError):
            raise ConfigError(where, f"{text!r} can't be its value", f"give {named(hints[name])}") from None
    return found


def _present(kind: type[Any], name: str) -> str:
    """The name that a setting has now, with a warning if it had another."""
    now = getattr(kind, "renamed", {}).get(name)
    if now is None or now not in {f.name for f in fields(kind)}:
        return name
    warn_of_old(f"the setting {name}", now, stacklevel=4)
    return str(now)


def as_text(config: Any) -> list[str]:
    """The settings of a method as text, NAME=VALUE for every field: what `configure` makes an equal one of."""
    return [f"{f.name}={_written(getattr(config, f.name))}" for f in fields(config)]


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _advice(name: str, allowed: Mapping[str, Field[Any]]) -> str:
    close = get_close_matches(name, allowed, n=1)
    listed = ", ".join(f.name if f.default is MISSING else f"{f.name}={f.default}" for f in allowed.values())
    return f"use {close[0]}; there are {listed}" if close else f"there are {listed or 'none'}"


def _value(text: str, hint: Any) -> Any:
    """The text as a value of a type. Raises ValueError if it is none."""
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        return _value(text, arguments[0])
    if get_origin(hint) in (Union, types.UnionType):
        for kind in arguments:
            try:
                return _value(text, kind)
            except ValueError:
                continue
        raise ValueError(text)
    if get_origin(hint) is tuple:
        parts = [part.strip() for part in text.strip("()").split(",")]
        kinds = arguments[:1] * len(parts) if arguments[1:] == (...,) else arguments
        return tuple(_value(part, kind) for part, kind in zip(parts, kinds, strict=True))
    if get_origin(hint) is Literal or hint in (bool, type(None)):
        values = arguments or ((True, False) if hint is bool else (None,))
        words = {str(value).lower(): value for value in values}
        if text.lower() not in words:
            raise ValueError(text)
        return words[text.lower()]
    if get_origin(hint) is Callable:
        raise ValueError(text)
    value = hint(text)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(text)
    return value
