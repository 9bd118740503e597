"""Which groups a class's own code survives, and which counts: what `allow=('own_class',)` lets through.

A class may hold sizes that no attribute reaches (`view(-1, 2048)`), or cut what it made into equal pieces. Every group
is tried by itself, with one unit left of each row: the class's own code has to compute what the masked model computes.
Where one fails, the groups of its layer are tried together with equal counts: the halves of a `chunk`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.errors import PruneError, first_line
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.plan.plan import Plan
from prunus.proof.comparison import TOLERANCE, compare
from prunus.proof.observation import observe
from prunus.surgery.cut import cut_, rescale_queries_


@dataclass(frozen=True)
class Survivors:
    """What the own class survives.

    Attributes:
        groups: groups that may go.
        equal: names of those among them that have to keep as many units as each other.
        notes: why the others stay.
        equal_notes: which keep equal counts, and why.
    """

    groups: list[ChannelGroup]
    equal: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    equal_notes: tuple[str, ...] = ()


def survivors(model: nn.Module, graph: Graph, groups: Sequence[ChannelGroup], example_inputs: Any) -> Survivors:
    """Try what the model's own code survives; the model is afterwards as it was.

    Args:
        model: the dense model.
        graph: its analysis.
        groups: those that could go.
        example_inputs: what to try it on.
    """
    cuttable = [g for g in groups if min(len(p) for p in _rows(g)) > 1]
    unlike = {g.name: _left(g, number % 2) for number, g in enumerate(cuttable)}
    if survives(model, graph, unlike, example_inputs) is None:
        return Survivors(list(groups), (), ())
    failed: dict[str, str] = {}
    for group in cuttable:
        reason = survives(model, graph, {group.name: _left(group)}, example_inputs)
        if reason is not None:
            failed[group.name] = reason
    equal = []
    for together in _of_one_layer(cuttable):
        names = tuple(g.name for g in together)
        alone = failed.keys() & set(names)
        if alone and survives(model, graph, {g.name: _left(g) for g in together}, example_inputs) is None:
            equal.append(names)
            failed = {n: reason for n, reason in failed.items() if n not in names}
    notes = [f"{n} stays, for the class's own code does not survive its removal: {r}" for n, r in failed.items()]
    told = [f"{', '.join(names)} keep equal counts, for the class cuts them into equal pieces" for names in equal]
    left = [g for g in groups if g.name not in failed]
    return Survivors(left, tuple(equal), tuple(notes), tuple(told))


def equalised(kept: dict[str, int], equal: Sequence[Sequence[str]]) -> dict[str, int]:
    """Counts in which groups that must keep equal ones keep the least that any of them was given."""
    counts = dict(kept)
    for names in equal:
        least = min((counts[n] for n in names if n in counts), default=None)
        if least is not None:
            counts |= dict.fromkeys(names, least)
    return counts


def _rows(group: ChannelGroup) -> list[Any]:
    rows = np.zeros(group.units, np.int64) if group.rows is None else group.rows
    return [np.flatnonzero(rows == row) for row in np.unique(rows)]


def _left(group: ChannelGroup, many: int = 0) -> list[int]:
    """One unit of each row, or (`many`) all but one: far apart, since an odd number is cut into unequal pieces too."""
    return sorted(int(u) for part in _rows(group) for u in (part[:-1] if many else part[:1]))


def _of_one_layer(groups: Sequence[ChannelGroup]) -> list[list[ChannelGroup]]:
    """Groups of as many units that one weight writes."""
    found: dict[tuple[str, int], list[ChannelGroup]] = {}
    for group in groups:
        for tensor in dict.fromkeys(s.tensor for s in group.writers[:1]):
            found.setdefault((tensor, group.units), []).append(group)
    return [together for together in found.values() if len(together) > 1]


def survives(model: nn.Module, graph: Graph, kept: Mapping[str, Sequence[int]], example_inputs: Any) -> str | None:
    """None if the class's own code computes the masked function with these units; otherwise why not."""
    inputs = [(example_inputs,) if isinstance(example_inputs, torch.Tensor) else example_inputs]
    try:
        plan = Plan.from_kept(graph, kept)
        right = observe(model, plan, inputs, mask=True, layers=False)
    except PruneError as refusal:
        return refusal.what
    tolerance = TOLERANCE.get(right.coarsest, TOLERANCE[torch.float32])
    try:
        undo = cut_(model, plan)
    except PruneError as refusal:
        return refusal.what
    try:
        for rescale in (None, rescale_queries_):
            if rescale is not None and rescale(model, plan) is None:
                break
            apart = compare(right.outputs, observe(model, plan, inputs, mask=False, layers=False).outputs, 1e-2)
            if apart.problem is None and (apart.error <= tolerance or not plan.exact):
                return None
    except Exception as failure:
        return first_line(failure)
    finally:
        undo()
    return apart.problem or f"its outputs differ from the masked model's by {apart.error:.1e}"
