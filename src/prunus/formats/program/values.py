"""Arguments of operations as plain data, both ways.

None, switches, integers, finite numbers, words and lists are JSON's own. Everything else has one tag:

    {"node": 3}                      what the third node gave
    {"float": "inf"}                 "inf", "-inf" or "nan"
    {"complex": [0.0, 1.0]}          finite parts
    {"dtype": "float32"}, {"layout": "strided"}, {"memory_format": "channels_last"}, {"device": "cpu"}

A program runs where its weights are loaded, on the processor; devices that it names become `cpu`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from prunus.files.decoding import Malformed
from prunus.runtime.precision import dtype_name

DTYPES = {
    dtype_name(d): d
    for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
              torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
              torch.bool)
}  # fmt: skip
LAYOUTS = {"strided": torch.strided}
MEMORY_FORMATS = {
    str(f).removeprefix("torch."): f
    for f in (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
}
DEVICES = {"cpu": torch.device("cpu")}
FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
TABLES: dict[str, Mapping[str, Any]] = {
    "dtype": DTYPES, "layout": LAYOUTS, "memory_format": MEMORY_FORMATS, "device": DEVICES, "float": FLOATS,
}  # fmt: skip
TEXT = re.compile(r"[A-Za-z0-9_ .,:;<>=!()\[\]*/+-]{0,300}")
"""Words of options, equations and messages: nothing that ends or escapes a string."""
LARGEST = 2**63
DEPTH = 6


class Inexpressible(Exception):
    """What a captured program holds and plain data can't say; its text says what."""


def to_plain(value: Any, number_of: Mapping[fx.Node, int]) -> Any:
    """An argument of a node as plain data. Raises Inexpressible."""
    if isinstance(value, fx.Node):
        return {"node": number_of[value]}
    if value is None or type(value) is bool or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if type(value) is complex:
        return {"complex": [value.real, value.imag]}
    if type(value) is str:
        return value
    if isinstance(value, tuple | list):
        return [to_plain(v, number_of) for v in value]
    if isinstance(value, torch.device):
        return {"device": "cpu"}
    for tag, kind in (("dtype", torch.dtype), ("layout", torch.layout), ("memory_format", torch.memory_format)):
        if isinstance(value, kind):
            return {tag: str(value).removeprefix("torch.")}
    raise Inexpressible(f"an argument of type {type(value).__name__}")


def from_plain(data: Any, node: Callable[[int], Any], depth: int = DEPTH) -> Any:
    """The argument that plain data says; `node` gives what a number names. Raises Malformed."""
    if data is None or type(data) is bool:
        return data
    if type(data) is int:
        if not -LARGEST <= data < LARGEST:
            raise Malformed("an integer of more than 64 bits")
        return data
    if type(data) is float:
        return data
    if type(data) is str:
        if not TEXT.fullmatch(data):
            raise Malformed(f"the text {data[:40]!r}")
        return data
    if depth == 0:
        raise Malformed("values nested too deep")
    if type(data) is list:
        return [from_plain(d, node, depth - 1) for d in data]
    return _tagged(data, node)


def _tagged(data: Any, node: Callable[[int], Any]) -> Any:
    if type(data) is not dict or len(data) != 1:
        raise Malformed(f"the value {str(data)[:60]!r}")
    ((tag, said),) = data.items()
    if tag == "node" and type(said) is int:
        return node(said)
    if tag == "complex" and type(said) is list and len(said) == 2 and all(_finite(part) for part in said):
        return complex(*said)
    table = TABLES.get(tag, {})
    if type(said) is not str or said not in table:
        raise Malformed(f"the value {str(data)[:60]!r}")
    return table[said]


def _finite(part: Any) -> bool:
    return type(part) in (int, float) and math.isfinite(part)
