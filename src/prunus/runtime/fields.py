"""Settings, held against what their annotations allow: one rule for every configuration."""

from __future__ import annotations

import inspect
import math
import numbers
import types
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from prunus.errors import ConfigError
from prunus.runtime.ranges import Range


def check_fields(config: Any) -> None:
    """Hold every field of a dataclass against its annotation: types, choices, ranges, lengths, finite numbers.

    Whole numbers may be numpy's, numbers may be whole, truth values are neither. How settings go together is the
    class's own matter.

    Raises:
        ConfigError: a value that the annotation does not allow, naming the field and what it takes.
    """
    kind = type(config)
    hints = hints_of(kind)
    for field in fields(config):
        check_value(f"{kind.__name__}.{field.name}", hints[field.name], getattr(config, field.name))


def check_arguments(function: Callable[..., Any], **given: Any) -> None:
    """Hold arguments of a function against its annotations, as `check_fields` does.

    Raises:
        ConfigError: a value that the annotation does not allow, naming class or function, argument and what it takes.
    """
    hints, where = _annotations(function), function.__qualname__.removesuffix(".__init__")
    for name, value in given.items():
        check_value(f"{where}.{name}", hints[name], value)


def check_value(where: str, hint: Any, value: Any) -> None:
    """Raise ConfigError if an annotation does not allow a value, naming what it does allow."""
    if not allows(hint, value):
        what = f"{value!r} is not {'known' if get_origin(hint) is Literal else 'allowed'}"
        raise ConfigError(where, what, f"give {named(hint)}")


@lru_cache
def _annotations(thing: Any) -> dict[str, Any]:
    return get_type_hints(thing, include_extras=True)


def hints_of(kind: type) -> dict[str, Any]:
    """The annotations of a class with their ranges; `object` for what can't be told from here.

    A class made inside a function may name what only that function knows.
    """
    try:
        return _annotations(kind)
    except NameError:
        found: dict[str, Any] = {}
        for base in reversed(kind.__mro__):
            for name, text in inspect.get_annotations(base).items():
                alone = type(base.__name__, (), {"__annotations__": {name: text}, "__module__": base.__module__})
                try:
                    found |= get_type_hints(alone, include_extras=True)
                except NameError:
                    found[name] = object
        return found


def check_kind(name: str, value: Any, kind: type, fix: str) -> None:
    """Raise ConfigError if an argument is of another class, saying what to give."""
    if not isinstance(value, kind):
        raise ConfigError(name, f"a {type(value).__name__} is no {kind.__name__}", f"give {fix}")


def allows(hint: Any, value: Any) -> bool:
    """Whether a value is of an annotated type; numbers must be finite."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return True
    if origin is Annotated:
        kind, *marks = arguments
        return allows(kind, value) and all(value in mark for mark in marks if isinstance(mark, Range))
    if origin in (Union, types.UnionType):
        return any(allows(kind, value) for kind in arguments)
    if origin is tuple and arguments[1:] == (...,):
        return isinstance(value, tuple) and all(allows(arguments[0], part) for part in value)
    if origin is tuple:
        fits = isinstance(value, tuple) and len(value) == len(arguments)
        return fits and all(allows(kind, part) for kind, part in zip(arguments, value, strict=True))
    if origin is Literal:
        return any(allows(type(choice), value) and value == choice for choice in arguments)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is int:
        return isinstance(value, numbers.Integral)
    if hint is float:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    return isinstance(value, origin or hint)


def named(hint: Any) -> str:
    """A type as people write it, with its range."""
    if get_origin(hint) is Annotated:
        kind, *marks = get_args(hint)
        return " ".join([named(kind), *(str(mark) for mark in marks if isinstance(mark, Range))])
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(named(kind) for kind in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple and get_args(hint)[1:] == (...,):
        return f"values with commas between them, each {named(get_args(hint)[0])}"
    if get_origin(hint) is tuple:
        return f"{len(get_args(hint))} values with commas between them, each {named(get_args(hint)[0])}"
    return {int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}.get(hint, "a text")


def as_seed(seed: Any) -> int:
    """A seed as a plain whole number; numpy's are taken.

    Raises:
        ConfigError: anything but a whole number of 62 bits, which leaves room for the seeds that are made from it.
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not -(2**62) <= int(seed) < 2**62:
        raise ConfigError("seed", f"{seed!r} is not a whole number between -2**62 and 2**62", "give for example 0")
    return int(seed)
