"""Calls that hold graphs of their own: under autocast, with gradients on or off, one of two by a condition.

    {"region": "autocast", "settings": ["cpu", {"dtype": "bfloat16"}, true, false], "graphs": [...], "with": [...]}
    {"region": "set_grad", "settings": [true], "graphs": [...], "with": [...]}
    {"region": "cond", "settings": [{"node": 7}], "graphs": [then, else], "with": [...]}

A graph has as many inputs as the call passes, nodes and outputs, and reads no tensor but what it is passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator

from prunus.files.decoding import Malformed
from prunus.formats.program.values import Inexpressible

REGIONS: dict[str, HigherOrderOperator] = {
    "autocast": torch.ops.higher_order.wrap_with_autocast,
    "set_grad": torch.ops.higher_order.wrap_with_set_grad_enabled,
    "cond": torch.ops.higher_order.cond,
}
GRAPHS = {"autocast": 1, "set_grad": 1, "cond": 2}
SETTINGS = {"autocast": 4, "set_grad": 1, "cond": 1}
AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")
DEPTH = 8
"""How many regions may lie in each other."""


def graphs_of(name: str, node: fx.Node) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """Settings, nodes that hold the graphs, and what is passed, of a call in a captured graph. Raises Inexpressible."""
    first, last = SETTINGS[name], SETTINGS[name] + GRAPHS[name]
    settings, holders, passed = node.args[:first], node.args[first:last], node.args[last:]
    if name == "cond":
        passed = tuple(passed[0]) if passed and isinstance(passed[0], tuple | list) else ()
    if len(holders) != GRAPHS[name] or not all(isinstance(h, fx.Node) and h.op == "get_attr" for h in holders):
        raise Inexpressible(f"a region {name} without graphs")
    return settings, holders, passed


def checked_settings(name: str, settings: Sequence[Any], graphs: int, kinds: Mapping[fx.Node, Any]) -> None:
    """Raise Malformed if a region has other settings, or another number of graphs, than its kind takes."""
    fits = len(settings) == SETTINGS[name] and graphs == GRAPHS[name]
    if fits and name == "autocast":
        device, dtype, enabled, cached = settings
        fits = isinstance(device, str) and device in AUTOCAST_DEVICES
        fits = fits and (dtype is None or isinstance(dtype, torch.dtype)) and type(enabled) is bool
        fits = fits and (cached is None or type(cached) is bool)
    elif fits and name == "set_grad":
        fits = type(settings[0]) is bool
    elif fits:
        fits = isinstance(settings[0], fx.Node) and kinds[settings[0]] in ("tensor", "number")
    if not fits:
        raise Malformed(f"a region {name} with the settings {str(settings)[:60]} and {graphs} graphs")


def arguments_of(
    name: str, settings: Sequence[Any], holders: Sequence[fx.Node], passed: Sequence[Any]
) -> tuple[Any, ...]:
    """The call's arguments as torch's operation takes them."""
    return (*settings, *holders, tuple(passed)) if name == "cond" else (*settings, *holders, *passed)
