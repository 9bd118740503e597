"""Deliberately wrong cuts: shapes fit, the function is another one. What a proof has to find."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import prunus.proof.apply
from prunus.errors import SurgeryError
from prunus.graph.grouping import Graph
from prunus.plan.edits import TensorEdit
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from prunus.proof.comparison import compare, named_tensors
from prunus.proof.observation import double
from prunus.proof.verification import Verification
from prunus.runtime.calling import call
from prunus.runtime.modes import eval_mode
from prunus.surgery.cut import Undo, cut_
from zeroed import zeroed_

MATTERS = 1e-3
"""A wrong cut is one if some channel of some output is off by so much of itself, in fp64."""


@dataclass(frozen=True)
class Wrong:
    """A wrong cut: another plan, and tensors (by name) that are zeroed or rolled after it."""

    kind: str
    plan: Plan
    spoiled: tuple[str, ...] = ()


def another_column(graph: Graph, plan: Plan, rng: np.random.Generator) -> Wrong | None:
    """One reader takes a position of a unit that goes instead of one that stays."""
    readers = [(r.weight, r.axis) for g in graph.groups() for r in g.readers if not r.output]
    return _exchanged("another column", plan, readers, rng)


def shifted_row(graph: Graph, plan: Plan, rng: np.random.Generator) -> Wrong | None:
    """One writer's weight keeps the rows next to those that stay."""
    writers = [(s.tensor, s.dim) for g in graph.groups() for s in g.writers if s.dim >= 0]
    for tensor, dim in _shuffled(writers, rng):
        edit = plan.tensors.get(tensor)
        if edit is not None and edit.columns is None and dim in edit.keep:
            shifted = tuple(sorted((k + 1) % edit.shape[dim] for k in edit.keep[dim]))
            if shifted != edit.keep[dim]:
                return Wrong("shifted row", _with(plan, tensor, edit, dim, shifted))
    return None


def wrong_head(graph: Graph, plan: Plan, rng: np.random.Generator) -> Wrong | None:
    """One tensor keeps another head than the others do."""
    names = {g.name for g in graph.groups() if g.heads_of is not None}
    found = [(s.tensor, s.dim, s.units_along_dim) for g in graph.groups() if g.name in names for s in g.slots]
    for tensor, dim, line in _shuffled(found, rng):
        edit = plan.tensors.get(tensor)
        if edit is None or dim not in edit.keep:
            continue
        heads = sorted(set(line.tolist()) - {-1})
        size = len(line) // max(len(heads), 1)
        moved = tuple(sorted((k + size) % edit.shape[dim] for k in edit.keep[dim]))
        if moved != edit.keep[dim]:
            return Wrong("wrong head", _with(plan, tensor, edit, dim, moved))
    return None


def lost_bias(graph: Graph, plan: Plan, rng: np.random.Generator) -> Wrong | None:
    """The bias (or offset, or running mean) of one layer is gone."""
    names = [n for n in graph.shapes if n.endswith((".bias", "running_mean"))]
    for name in _shuffled(names, rng):
        return Wrong("lost bias", plan, (name,))
    return None


def other_bias(graph: Graph, plan: Plan, rng: np.random.Generator) -> Wrong | None:
    """A vector of one number per unit keeps another unit's number."""
    vectors = [(n, 0) for n, e in plan.tensors.items() if len(e.shape) == 1]
    return _exchanged("another unit's number", plan, vectors, rng)


KINDS: tuple[Callable[[Graph, Plan, np.random.Generator], Wrong | None], ...] = (
    another_column, shifted_row, wrong_head, lost_bias, other_bias,
)  # fmt: skip


def _exchanged(kind: str, plan: Plan, places: list[tuple[str, int]], rng: np.random.Generator) -> Wrong | None:
    for tensor, dim in _shuffled(places, rng):
        edit = plan.tensors.get(tensor)
        if edit is None or edit.columns is not None or dim not in edit.keep:
            continue
        gone = sorted(set(range(edit.shape[dim])) - set(edit.keep[dim]))
        if gone:
            keep = list(edit.keep[dim])
            keep[int(rng.integers(len(keep)))] = gone[int(rng.integers(len(gone)))]
            return Wrong(kind, _with(plan, tensor, edit, dim, tuple(sorted(keep))))
    return None


def _shuffled(items: list[Any], rng: np.random.Generator) -> Iterator[Any]:
    return (items[i] for i in rng.permutation(len(items)))


def _with(plan: Plan, tensor: str, edit: TensorEdit, dim: int, keep: tuple[int, ...]) -> Plan:
    return replace(plan, tensors={**plan.tensors, tensor: replace(edit, keep={**edit.keep, dim: keep})})


@contextmanager
def spoiling(names: tuple[str, ...]) -> Iterator[None]:
    """Within the context every cut zeroes the named tensors besides."""

    def spoiled(model: nn.Module, plan: Plan) -> Undo:
        undo = cut_(model, plan)
        tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        saved = [(tensors[n].data, tensors[n].detach().clone()) for n in names]
        for held, _ in saved:
            held.zero_()
        return Undo((*undo.steps, *(lambda h=h, s=s: h.copy_(s) for h, s in saved)))  # type: ignore[misc]

    with mock.patch.object(prunus.proof.apply, "cut_", spoiled):
        yield


def is_wrong(model: nn.Module, graph: Graph, plan: Plan, wrong: Wrong, inputs: Any) -> bool:
    """Whether the wrong cut really computes another function, by fp64 and the zeroed network."""
    cut, given = copy.deepcopy(model).double(), double(inputs)
    reference = zeroed_(copy.deepcopy(cut), graph, plan.kept)
    with spoiling(wrong.spoiled), torch.no_grad():
        prunus.proof.apply.cut_(cut, wrong.plan)
        with eval_mode(cut), eval_mode(reference):
            now, right = named_tensors(call(cut, given)), named_tensors(call(reference, given))
    apart = compare([right], [now], 1e-6)
    return apart.problem is not None or apart.error > MATTERS


def attempt(model: nn.Module, wrong: Wrong, inputs: Any) -> Verification | None:
    """What the proof says of a cut in the model's own class; None if it refuses."""
    with spoiling(wrong.spoiled):
        try:
            return apply_and_verify_(copy.deepcopy(model), wrong.plan, inputs, rewrite_graph=False)[1]
        except SurgeryError:
            return None


def half_of_all(graph: Graph) -> dict[str, list[int]]:
    """Every second unit of each row of every prunable group but dimensions inside heads (whose scale is mended)."""
    kept = {}
    for group in [g for g in graph.groups() if not g.inside_heads]:
        rows = np.zeros(group.units, int) if group.rows is None else group.rows
        parts = [np.flatnonzero(rows == row) for row in np.unique(rows)]
        kept[group.name] = sorted(int(u) for part in parts for u in part[::2])
    return kept
