"""Plans as files: written as JSON, and read back only if every number in them can be true."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch

from prunus.files.decoding import Malformed, decode, parse_json

FORMAT, OLDER = 2, (1,)
LONGEST = 256 << 20
"""Characters of a plan; a million kept positions take about seven million."""


def to_json(plan: Any) -> str:
    """The plan as JSON text (`from_json` reads it back)."""
    data = {**asdict(plan), "before": dict(plan.before), "after": dict(plan.after)}
    data["tensors"] = {n: {**e, "keep": {str(d): k for d, k in e["keep"].items()}} for n, e in data["tensors"].items()}
    return json.dumps({"format": FORMAT, **data}, allow_nan=False)


def from_json(kind: Any, text: str) -> Any:
    """A plan of the given class from its text.

    Raises:
        Malformed: the text is not a plan, of another format, or says what can't be.
    """
    if not isinstance(text, str):
        raise Malformed(f"a {type(text).__name__} is no text")
    if len(text) > LONGEST:
        raise Malformed(f"{len(text):,} characters are too many")
    data = parse_json(text)
    if not isinstance(data, dict) or data.get("format") not in (FORMAT, *OLDER):
        raise Malformed(f"it has no format number {FORMAT}")
    if data.pop("format") in OLDER and isinstance(data.get("inputs"), list):
        data["inputs"] = [_named_input(number, entry) for number, entry in enumerate(data["inputs"])]
    plan = decode(kind, data, "plan")
    _check(plan)
    return plan


def _check(plan: Any) -> None:
    for group in plan.groups:
        where = f"group {group.name!r}"
        _positions(group.kept, group.units, f"{where}: kept")
        if not group.kept and not (group.block and group.units == 1):
            raise Malformed(f"{where} keeps nothing")
        chances = group.keep_probability
        if chances is not None and (len(chances) != group.units or not all(0 <= p <= 1 for p in chances)):
            raise Malformed(f"{where} has no {group.units} keep probabilities between 0 and 1")
    if bool(plan.removal.gates) != any(g.block and not g.kept for g in plan.groups):
        raise Malformed("blocks go without modules, or modules without blocks")
    if any(not name for name in (*plan.removal.gates, *(s.module for s in plan.removal.stand_ins))):
        raise Malformed("the whole model is said to be a block")
    if any(not 0 <= s.results < 1024 for s in plan.removal.stand_ins):
        raise Malformed("a module is said to have no results, or too many")
    if len({g.name for g in plan.groups}) != len(plan.groups):
        raise Malformed("a group is decided twice")
    for name, edit in plan.tensors.items():
        _check_edit(f"tensor {name!r}", edit)
    for entry in plan.masked:
        where = f"masked input of {entry.module!r}"
        _positions(entry.removed, entry.size, where)
        if not -8 <= entry.dim < 8 or not 0 <= entry.axis < 8:
            raise Malformed(f"{where}: no tensor has a dimension {entry.dim} or {entry.axis}")
        _positions(entry.of, entry.size, where)
        if entry.product < -1:
            raise Malformed(f"{where}: product {entry.product} is none")
    for norm in plan.norms:
        if norm.tensor not in plan.tensors or not -1 <= norm.dim < len(plan.tensors[norm.tensor].shape):
            raise Malformed(f"the norm of {norm.tensor!r} along {norm.dim} is none of the plan's tensors")
    for entry in plan.inputs:
        _check_input(entry)
    for pattern in plan.patterns:
        if not 0 < pattern.k <= pattern.n or pattern.rows < 1 or pattern.weights < 1:
            raise Malformed(
                f"the pattern of {pattern.module!r} keeps {pattern.k} of {pattern.n} in {pattern.rows} rows"
            )


def _check_edit(where: str, edit: Any) -> None:
    if any(size < 0 for size in edit.shape) or math.prod(edit.shape) > 1 << 40:
        raise Malformed(f"{where} has the shape {edit.shape[:8]}")
    for dim, kept in edit.keep.items():
        if dim >= len(edit.shape):
            raise Malformed(f"{where} has no dimension {dim}")
        _positions(kept, edit.shape[dim], where)
        if not kept:
            raise Malformed(f"{where} keeps nothing of dimension {dim}")
    if edit.values is not None:
        _check_values(where, edit)
    if edit.columns is not None:
        if len(edit.shape) < 2 or len({len(c) for c in edit.columns}) > 1:
            raise Malformed(f"{where}: its groups keep unequal numbers of columns")
        if len(edit.columns) != len(edit.keep.get(0, range(edit.shape[0]))):
            raise Malformed(f"{where}: columns are given for another number of rows")
        for columns in edit.columns:
            _positions(columns, edit.shape[1], where)


def _check_values(where: str, edit: Any) -> None:
    if len(edit.shape) != 1 or len(edit.values) != len(edit.keep.get(0, range(edit.shape[0]))):
        raise Malformed(f"{where}: {len(edit.values)} values are not as many as stay of it")
    if any(not 0 <= value < 1 << 40 for value in edit.values):
        raise Malformed(f"{where}: its values are no positions")


def _named_input(number: int, entry: Any) -> Any:
    """An example input of format 1, which was a pair of shape and dtype, given by position."""
    if not isinstance(entry, list) or len(entry) != 2:
        raise Malformed(f"plan.inputs[{number}] is no pair of shape and dtype")
    return {"shape": entry[0], "dtype": entry[1], "path": [number]}


def _check_input(entry: Any) -> None:
    shape, dtype = entry.shape, entry.dtype
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise Malformed(f"{dtype!r} is no dtype of inputs")
    if len(shape) > 8 or any(size < 0 for size in shape) or math.prod(shape) > 1 << 28:
        raise Malformed(f"inputs of shape {shape[:8]} are none that a model takes")
    if not entry.path or any(isinstance(p, int) and not 0 <= p < 1024 for p in entry.path):
        raise Malformed(f"inputs at {entry.path[:8]} are no arguments")
    if (entry.low is None) != (entry.high is None) or (entry.low or 0) > (entry.high or 0):
        raise Malformed("the range of an input's numbers is empty")


def _positions(positions: Sequence[int], size: int, where: str) -> None:
    """Ascending positions within a size."""
    ascending = all(a < b for a, b in pairwise(positions))
    if positions and not (ascending and positions[0] >= 0 and positions[-1] < size):
        raise Malformed(f"{where}: positions must ascend within 0..{size - 1}")
