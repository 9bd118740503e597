"""Whether a call fits its operation's schema, and what kind of thing it gives, before anything is built.

Kinds: "tensor", "number", "tensors" and "numbers" (lists of a length that only running tells), "nothing", or a tuple of
kinds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import fx
from torch._ops import OpOverload

from prunus.files.decoding import Malformed
from prunus.formats.program.operators import NUMBERS, arity, plain_type

Kind = Any
LARGEST_LITERAL = 2**32
"""Elements of a tensor whose size a program holds as numbers: 16 GiB in fp32."""


def result_of(name: str, overload: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any],
              kinds: Mapping[fx.Node, Kind]) -> Kind:  # fmt: skip
    """The kind of what the call gives. Raises Malformed if the arguments don't fit the schema."""
    arguments, returns = _schema(overload)
    positional = [a.name for a in arguments if not a.by_name]
    if len(args) > len(positional):
        raise Malformed(f"{name} with {len(args)} arguments")
    given = dict(zip(positional, args, strict=False))
    for key, value in kwargs.items():
        if key in given or key not in {a.name for a in arguments}:
            raise Malformed(f"{name} with an argument {key!r}")
        given[key] = value
    for argument in arguments:
        if argument.name in given:
            value = given[argument.name]
            if not _fits(value, argument.kind, kinds, argument.repeats):
                raise Malformed(f"{name} with {argument.name}={str(value)[:40]!r}, which is no {argument.kind}")
        elif not argument.optional:
            raise Malformed(f"{name} without {argument.name}")
    if not any("Tensor" in a.kind for a in arguments):
        _refuse_giants(name, given, arguments)
    return returns


class _Argument(NamedTuple):
    """What a schema says of one argument; `repeats`: one number stands for a list of it."""

    name: str
    kind: str
    by_name: bool
    optional: bool
    repeats: bool


@cache
def _schema(overload: OpOverload) -> tuple[tuple[_Argument, ...], Kind]:
    """An operation's arguments, and the kind of what it gives."""
    schema = overload._schema
    arguments = tuple(
        _Argument(a.name, str(a.real_type), a.kwarg_only, a.has_default_value(), getattr(a, "N", None) is not None)
        for a in schema.arguments
    )
    return arguments, _kind_of([str(r.real_type) for r in schema.returns])


def number_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], kinds: Mapping[fx.Node, Kind]) -> Kind:
    """The kind that arithmetic of sizes gives. Raises Malformed."""
    assert name in NUMBERS
    if kwargs or len(args) != arity(name) or not all(_fits(a, "number", kinds) for a in args):
        raise Malformed(f"{name} with arguments that are no numbers")
    return "number"


def item_of(args: Sequence[Any], kwargs: Mapping[str, Any], kinds: Mapping[fx.Node, Kind]) -> Kind:
    """The kind of one of several results. Raises Malformed."""
    if kwargs or len(args) != 2 or not isinstance(args[0], fx.Node) or type(args[1]) is not int:
        raise Malformed("an item of something without items")
    whole, index = kinds[args[0]], args[1]
    if whole in ("tensors", "numbers"):
        return whole.removesuffix("s")
    if not isinstance(whole, tuple) or not 0 <= index < len(whole):
        raise Malformed(f"item {index} of {whole}")
    return whole[index]


def _kind_of(returns: list[str]) -> Kind:
    if len(returns) == 1:
        several = returns[0].startswith("List[")
        kind = "tensor" if plain_type(returns[0]) == "Tensor" else "number"
        return f"{kind}s" if several else kind
    return tuple(_kind_of([r]) for r in returns) if returns else "nothing"


def _fits(value: Any, kind: str, kinds: Mapping[fx.Node, Kind], repeats: bool = False) -> bool:
    if inner := re.fullmatch(r"Optional\[(.*)\]", kind):
        return value is None or _fits(value, inner.group(1), kinds, repeats)
    if inner := re.fullmatch(r"List\[(.*)\]", kind):
        element = inner.group(1)
        if isinstance(value, list):
            return all(_fits(v, element, kinds) for v in value)
        if isinstance(value, fx.Node) and "Tensor" in element:
            found = kinds[value]
            return found == "tensors" or (isinstance(found, tuple) and set(found) == {"tensor"})
        return repeats and _fits(value, element, kinds)  # one number for all dimensions
    if isinstance(value, fx.Node):
        return kinds[value] == "tensor" if kind == "Tensor" and kinds[value] != "number" else (
            kinds[value] == "number" and kind in ("Tensor", "int", "float", "bool", "number")
        )  # fmt: skip
    return isinstance(value, LITERALS.get(kind, ())) and not (kind == "int" and isinstance(value, bool))


LITERALS: dict[str, Any] = {
    "Tensor": int | float | complex,  # a number stands for a tensor of no dimensions
    "number": int | float | complex,
    "int": int,
    "float": int | float,
    "bool": bool,
    "str": str,
    "ScalarType": torch.dtype,
    "Layout": torch.layout,
    "MemoryFormat": torch.memory_format,
    "Device": torch.device,
}


def _refuse_giants(name: str, given: Mapping[str, Any], arguments: Sequence[_Argument]) -> None:
    """Raise Malformed if an operation that makes a tensor of nothing but numbers would make a giant one."""
    elements = 1.0
    ranges = name.startswith(("aten.arange.", "aten.range."))
    for argument in arguments:
        value = given.get(argument.name)
        if ranges and argument.kind == "number" and isinstance(value, int | float):
            elements *= max(abs(value), 1.0)
        elif plain_type(argument.kind) == "int":
            for size in value if isinstance(value, list) else [value]:
                elements *= max(abs(size), 1) if type(size) is int else 1
    if elements > LARGEST_LITERAL:
        raise Malformed(f"{name} of {elements:.0e} elements")
