"""Settings kept in dataclasses, held against what their annotations allow: one rule for every configuration."""

from __future__ import annotations

import math
import numbers
import types
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from prunus.errors import ConfigError


def check_fields(config: Any) -> None:
    """Hold every field of a dataclass against its annotation: types, choices, lengths of tuples, finite numbers.

    Whole numbers may be numpy's, numbers may be whole, truth values are neither. Ranges are the class's own matter.

    Raises:
        ConfigError: a value that the annotation does not allow, naming the field and what it takes.
    """
    kind = type(config)
    try:
        hints = get_type_hints(kind)
    except NameError:  # a class made inside a function: its annotations can't be told from here
        return
    for field in fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if not allows(hint, value):
            what = f"{value!r} is not {'known' if get_origin(hint) is Literal else 'allowed'}"
            raise ConfigError(f"{kind.__name__}.{field.name}", what, f"give {named(hint)}")


def check_kind(name: str, value: Any, kind: type, fix: str) -> None:
    """Raise ConfigError if an argument is of another class, saying what to give."""
    if not isinstance(value, kind):
        raise ConfigError(name, f"a {type(value).__name__} is no {kind.__name__}", f"give {fix}")


def allows(hint: Any, value: Any) -> bool:
    """Whether a value is of an annotated type; numbers must be finite."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(allows(kind, value) for kind in arguments)
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
    """A type as people write it."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(named(kind) for kind in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
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
