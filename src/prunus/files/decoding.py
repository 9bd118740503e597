"""Plain data from files, checked against the types of a dataclass before anything is made of it."""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 2**62
"""Whole numbers beyond it are no sizes, indices or costs, and no tensor library takes them."""


class Malformed(ValueError):
    """What is wrong with the data, and where in it. Callers turn it into their own typed refusal."""


def parse_json(text: str | bytes) -> Any:
    """JSON in the strict sense: no NaN or infinity, no name twice, no depth that exhausts the interpreter.

    Raises:
        Malformed: the text is not that.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_once)
    except RecursionError:
        raise Malformed("it is nested too deeply") from None
    except ValueError as error:
        raise Malformed(f"it is no JSON: {str(error)[:100]}") from None


def _finite(written: str) -> float:
    if not math.isfinite(number := float(written)):
        raise ValueError(f"the number {written[:40]}")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name twice in one object")
    return found


def decode(hint: Any, value: Any, where: str) -> Any:
    """The value as the type says: lists become tuples, objects become dataclasses; nothing is converted otherwise.

    Args:
        hint: `int`, `float`, `str`, `bool`, `None`, `Any`, literals, unions, tuples, mappings with keys of text or
            whole numbers, dataclasses of these, and classes with a `decoded(value, where)` of their own.
        value: what `json.loads` returned.
        where: the place in the file, for the message.

    Raises:
        Malformed: a value of another type, a number that is not finite or beyond 2**62, an unknown or a missing field.
    """
    kind = get_origin(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return _record(hint, value, where)
    if hasattr(hint, "decoded"):
        return hint.decoded(value, where)
    if kind in (Union, types.UnionType):
        return _one_of(get_args(hint), value, where)
    if kind is tuple:
        return _tuple(get_args(hint), value, where)
    if kind is not None and _is_mapping(kind):
        key, entry = get_args(hint)
        return _mapping(key, entry, value, where)
    if kind is Literal:
        if value in get_args(hint):
            return value
        raise Malformed(f"{where} is {_shown(value)}, not one of {get_args(hint)}")
    return _plain(hint, value, where)


def _is_mapping(kind: Any) -> bool:
    """True for `dict`, `Mapping` and their kin."""
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _plain(hint: Any, value: Any, where: str) -> Any:
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint is int and type(value) is int and abs(value) <= LARGEST:
        return value
    if hint in (str, bool) and type(value) is hint:
        return value
    if hint in (None, type(None)) and value is None:
        return None
    name = getattr(hint, "__name__", str(hint))
    raise Malformed(f"{where} is {_shown(value)}, where {name} belongs")


def _one_of(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    problems = []
    for hint in hints:
        try:
            return decode(hint, value, where)
        except Malformed as problem:
            problems.append(str(problem))
    raise Malformed(problems[0])


def _tuple(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list):
        raise Malformed(f"{where} is {_shown(value)}, where a list belongs")
    if hints[1:] == (...,):
        if hints[0] is int and all(type(v) is int and -LARGEST <= v <= LARGEST for v in value):
            return tuple(value)  # kept positions: many
        return tuple(decode(hints[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if len(hints) != len(value):
        raise Malformed(f"{where} has {len(value)} entries, not {len(hints)}")
    return tuple(decode(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(hints, value, strict=True)))


def _mapping(key: Any, hint: Any, value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{where} is {_shown(value)}, where an object belongs")
    found = {}
    for name, entry in value.items():
        if key is int and not re.fullmatch(r"\d{1,18}", name):
            raise Malformed(f"{where} has the key {_shown(name)}, where a whole number belongs")
        found[int(name) if key is int else name] = decode(hint, entry, f"{where}[{_shown(name)}]")
    return found


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise Malformed(f"{where} is {_shown(value)}, where an object belongs")
    hints = _hints(kind)
    given = {}
    for entry in fields(kind):
        if entry.name in value:
            given[entry.name] = decode(hints[entry.name], value[entry.name], f"{where}.{entry.name}")
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise Malformed(f"{where} has no {entry.name!r}")
    if unknown := sorted(set(value) - set(given)):
        raise Malformed(f"{where} has the unknown field {_shown(unknown[0])}")
    return kind(**given)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, list | dict) else f"a {type(value).__name__} of {len(value)}"
    return text if len(text) <= 60 else f"{text[:57]}..."
