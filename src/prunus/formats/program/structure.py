"""Nested inputs and outputs as plain data: lists, tuples, dicts, and what had names besides, without its class.

    {"list": [...]}, {"tuple": [...]}, {"dict": [[key, ...], ...]}
    {"named": [[name, ...], ...]}        a dataclass or one of transformers' outputs: read as `NamedOutputs`
    {"namedtuple": [[name, ...], ...]}   read as `NamedTuple`

Leaves are whatever the caller says. No class is imported by a name that an artifact gives.
"""

from __future__ import annotations

import dataclasses
import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.utils import _pytree as pytree

from prunus.files.decoding import Malformed
from prunus.formats.program.values import TEXT, Inexpressible

DEPTH = 16
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
TAGS = ("list", "tuple", "dict", "named", "namedtuple")


class NamedOutputs(dict[str, Any]):
    """Outputs by name: as a dict, as attributes, and by position among those that are not None."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | slice):
            return tuple(v for v in self.values() if v is not None)[key]
        return super().__getitem__(key)

    def __reduce__(self) -> tuple[Any, ...]:
        return NamedOutputs, (dict(self),)


class NamedTuple(tuple[Any, ...]):
    """A tuple whose items have names too."""

    names: tuple[str, ...]

    def __new__(cls, items: Iterable[tuple[str, Any]]) -> NamedTuple:
        """From (name, value) in order."""
        pairs = list(items)
        made = super().__new__(cls, (value for _, value in pairs))
        made.names = tuple(name for name, _ in pairs)
        return made

    def __getattr__(self, name: str) -> Any:
        names = self.__dict__.get("names", ())
        if name not in names:
            raise AttributeError(name)
        return self[names.index(name)]

    def __reduce__(self) -> tuple[Any, ...]:
        return NamedTuple, (list(zip(self.names, self, strict=True)),)


pytree.register_pytree_node(
    NamedOutputs,
    lambda d: (list(d.values()), list(d)),
    lambda values, names: NamedOutputs(zip(names, values, strict=True)),
    flatten_with_keys_fn=lambda d: ([(pytree.MappingKey(k), v) for k, v in d.items()], list(d)),
    serialized_type_name="prunus.NamedOutputs",
)
pytree.register_pytree_node(
    NamedTuple,
    lambda t: (list(t), list(t.names)),
    lambda values, names: NamedTuple(zip(names, values, strict=True)),
    flatten_with_keys_fn=lambda t: ([(pytree.SequenceKey(i), v) for i, v in enumerate(t)], list(t.names)),
    serialized_type_name="prunus.NamedTuple",
)


def to_plain_structure(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """A nested value as plain data, `leaf` saying what its leaves are. Raises Inexpressible."""

    def pairs(items: Iterable[tuple[Any, Any]]) -> list[Any]:
        return [[_key(k), to_plain_structure(v, leaf)] for k, v in items]

    if isinstance(value, NamedTuple):
        return {"namedtuple": pairs(zip(value.names, value, strict=True))}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"namedtuple": pairs(zip(value._fields, value, strict=True))}
    if type(value) in (list, tuple):
        return {type(value).__name__: [to_plain_structure(v, leaf) for v in value]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Mapping):
        return {"named": pairs((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))}
    if isinstance(value, Mapping):
        by_attribute = value and all(isinstance(k, str) and getattr(value, k, None) is v for k, v in value.items())
        return {"named" if by_attribute else "dict": pairs(value.items())}
    return leaf(value)


def _key(key: Any) -> Any:
    if type(key) is int or (type(key) is str and TEXT.fullmatch(key)):
        return key
    raise Inexpressible(f"the key {key!r} of an output")


def from_plain_structure(data: Any, leaf: Callable[[Any], Any], depth: int = DEPTH) -> Any:
    """The nested value that plain data says. Raises Malformed."""
    tag = next(iter(data), None) if type(data) is dict and len(data) == 1 else None
    if tag not in TAGS:
        return leaf(data)
    items = data[tag]
    if depth == 0 or type(items) is not list:
        raise Malformed("outputs nested too deep" if depth == 0 else f"a {tag} that is no list")
    if tag in ("list", "tuple"):
        made = [from_plain_structure(d, leaf, depth - 1) for d in items]
        return made if tag == "list" else tuple(made)
    if not all(type(p) is list and len(p) == 2 and _is_key(p[0], tag) for p in items):
        raise Malformed(f"a {tag} with the names {str([p[:1] for p in items if type(p) is list])[:60]}")
    pairs = [(key, from_plain_structure(d, leaf, depth - 1)) for key, d in items]
    if len({(type(k), k) for k, _ in pairs}) < len(pairs):
        raise Malformed(f"a {tag} with the same name twice")
    return {"dict": dict, "named": NamedOutputs, "namedtuple": NamedTuple}[tag](pairs)


def _is_key(key: Any, tag: str) -> bool:
    if tag == "dict":
        return (type(key) is int and abs(key) < 2**63) or (type(key) is str and bool(TEXT.fullmatch(key)))
    return type(key) is str and is_name(key)


def is_name(text: str) -> bool:
    """True for what may stand as a name in Python code."""
    return bool(NAME.fullmatch(text)) and not keyword.iskeyword(text) and not text.startswith("__")
