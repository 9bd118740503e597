"""Every animal of the zoo: what is found, what is cut, and that what is cut computes the same as what is zeroed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import PlanError, SurgeryError, TraceError
from prunus.graph.grouping import Graph
from prunus.graph.groups import ChannelGroup
from prunus.plan.cost import count_cost
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from prunus.runtime.calling import call, flat_outputs, outputs
from prunus.runtime.copies import copied
from traced import traced
from zeroed import zeroed_
from zoo import ZOO

TRACEABLE = [name for name, animal in ZOO.items() if not animal.refused]
PRUNABLE = [name for name in TRACEABLE if ZOO[name].units != 0]


def halved(group: ChannelGroup, rng: np.random.Generator, removed: int | None = None) -> list[int]:
    """A random half of the units (or all but `removed`) of each row, at least one."""
    rows = np.zeros(group.units, int) if group.rows is None else group.rows
    kept: list[int] = []
    for row in np.unique(rows):
        units = rng.permutation(np.flatnonzero(rows == row))
        count = len(units) // 2 if removed is None else len(units) - removed
        kept += units[: max(1, count)].tolist()
    return sorted(kept)


def half_of_all(graph: Graph, seed: int = 0) -> dict[str, list[int]]:
    rng = np.random.default_rng(seed)
    return {group.name: halved(group, rng) for group in graph.groups()}


def gap(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference, relative to the largest output."""
    assert [t.shape for t in a] == [t.shape for t in b]
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in zip(a, b, strict=True))


def backward(model: nn.Module, inputs: Any) -> None:
    torch.stack([t.square().sum() for t in flat_outputs(call(model, inputs)) if t.requires_grad]).sum().backward()


@pytest.mark.parametrize("name", TRACEABLE)
def test_finds_what_the_zoo_says(name: str) -> None:
    animal, _, graph = traced(name)
    groups = {g.name: g for g in graph.groups(locked=True)}
    assert [n for n in animal.prunable if n not in groups or not groups[n].prunable] == []
    for locked, fragment in animal.locked:
        reason = groups[locked].locked or ("" if groups[locked].exact else "statistics")
        assert not groups[locked].prunable
        assert fragment in reason
    if animal.units is not None:
        assert sum(g.units for g in graph.groups()) == animal.units


@pytest.mark.parametrize("name", TRACEABLE)
def test_explains_every_group(name: str) -> None:
    _, _, graph = traced(name)
    lines = graph.explain().splitlines()
    for group in graph.groups(locked=True):
        line = next(line for line in lines if line.split(":")[0].split()[-1] == group.name)
        kind = "if asked" if group.inside_heads else "prunable"
        assert line.startswith(kind if group.prunable else "locked" if group.locked else "inexact")
        assert (group.locked or "") in line
        assert group.source
        assert group.source in line


def test_a_locked_group_names_the_line_that_locks_it() -> None:
    _, _, graph = traced("add_constant_inline")
    reason = graph.group("stem.0").locked or ""
    assert re.search(r"\(zoo_nets\.py:\d+ .*torch\.linspace", reason)


@pytest.mark.parametrize("name", TRACEABLE)
def test_slots_agree_with_the_tensors(name: str) -> None:
    _, model, graph = traced(name)
    shapes = {n: t.shape for n, t in (*model.named_parameters(), *model.named_buffers())}
    for group in graph.groups(locked=True):
        for slot in group.slots:
            torch.broadcast_shapes(slot.plane.shape, shapes[slot.tensor])
            assert slot.plane.ndim == len(shapes[slot.tensor])
            assert slot.plane.max() < group.units
        for writer in group.writers:
            assert set(np.unique(writer.plane)) - {-1} <= set(range(group.units))
        if group.prunable:
            assert group.readers
            written = set().union(*(set(np.unique(s.plane).tolist()) for s in group.writers))
            assert written - {-1} == set(range(group.units))


@pytest.mark.parametrize("name", PRUNABLE)
def test_pruned_equals_zeroed(name: str) -> None:
    animal, model, graph = traced(name)
    inputs, kept = animal.inputs(2), half_of_all(graph)
    plan = Plan.from_kept(graph, kept)
    pruned, proof = apply_and_verify_(copied(model), plan, inputs)
    reference = zeroed_(copied(model), graph, kept)

    assert proof.passed
    assert gap(outputs(reference, inputs), outputs(pruned, inputs)) < 1e-4
    assert gap(outputs(model, inputs), outputs(pruned, inputs)) > 1e-3
    if animal.rewritten is not None:
        assert proof.rewritten == animal.rewritten
    other = animal.inputs(5)
    assert gap(outputs(reference, other), outputs(pruned, other)) < 1e-4

    before, after = model.state_dict(), pruned.state_dict()
    assert set(after) == set(before)
    assert set(copied(pruned).state_dict()) == set(before)
    smaller = {n for n in before if before[n].shape != after[n].shape}
    assert {graph.aliases.get(n, n) for n in smaller} == set(plan.tensors)
    assert all(torch.equal(before[n], after[n]) for n in set(before) - smaller - {norm.scale for norm in plan.norms})
    for tensor, edit in plan.tensors.items():
        sizes = [len(edit.keep.get(d, range(s))) for d, s in enumerate(edit.shape)]
        sizes[1:2] = [len(edit.columns[0])] if edit.columns else sizes[1:2]
        assert tuple(after[tensor].shape) == tuple(sizes)

    assert plan.before == count_cost(graph)
    assert plan.after == count_cost(prunus.trace(pruned, inputs))
    backward(pruned, inputs)
    pruned.train()
    backward(pruned, inputs)


@pytest.mark.parametrize("name", PRUNABLE)
def test_one_unit_of_each_group_can_go(name: str) -> None:
    animal, model, graph = traced(name)
    inputs = animal.inputs(2)
    for group in graph.groups():
        if len(set(range(group.units)) if group.rows is None else set(group.rows)) == group.units:
            continue
        kept = {group.name: halved(group, np.random.default_rng(1), removed=1)}
        pruned = prunus.apply_(copied(model), Plan.from_kept(graph, kept), inputs)
        assert gap(outputs(zeroed_(copied(model), graph, kept), inputs), outputs(pruned, inputs)) < 1e-4


@pytest.mark.parametrize("name", PRUNABLE)
def test_only_one_unit_per_row_may_stay(name: str) -> None:
    animal, model, graph = traced(name)
    kept = {g.name: halved(g, np.random.default_rng(2), removed=g.units) for g in graph.groups()}
    pruned = prunus.apply_(copied(model), Plan.from_kept(graph, kept), animal.inputs(2))
    reference = zeroed_(copied(model), graph, kept)
    assert gap(outputs(reference, animal.inputs(2)), outputs(pruned, animal.inputs(2))) < 1e-4


@pytest.mark.parametrize("name", TRACEABLE)
def test_tracing_leaves_no_trace(name: str) -> None:
    animal = ZOO[name]
    model = animal.make().train()
    next(model.children()).eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    flags = {n: m.training for n, m in model.named_modules()}
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    first = prunus.trace(model, animal.inputs(2))

    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert flags == {n: m.training for n, m in model.named_modules()}
    assert hooks == {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    assert all(p.grad is None for p in model.parameters())
    assert first.explain() == traced(name)[2].explain()


@pytest.mark.parametrize("name", PRUNABLE)
def test_plans_survive_json(name: str) -> None:
    _, _, graph = traced(name)
    plan = Plan.from_kept(graph, half_of_all(graph))
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.diff(plan) == "the plans keep the same units"


@pytest.mark.parametrize("name", [n for n, a in ZOO.items() if a.refused])
def test_refuses_what_depends_on_data(name: str) -> None:
    with pytest.raises(TraceError, match=r"zoo_nets\.py:\d+"):
        prunus.trace(ZOO[name].make(), ZOO[name].inputs(2))


@pytest.mark.parametrize("name", ["plain_cnn", "hard_coded_view", "resnext"])
def test_a_plan_for_another_model_changes_nothing(name: str) -> None:
    _, _, graph = traced("residual_option_b")
    plan = Plan.from_kept(graph, half_of_all(graph))
    model = ZOO[name].make()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(PlanError):
        prunus.apply_(model, plan, ZOO[name].inputs(2))
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("name", ["plain_cnn", "residual_option_b", "hard_coded_view", "resnext", "tied_linear"])
def test_a_wrong_plan_is_found_out_and_undone(name: str) -> None:
    """The last reader's columns are swapped for others: shapes fit, the function is another one."""
    animal, model, graph = traced(name)
    plan = Plan.from_kept(graph, half_of_all(graph))
    reader = graph.groups()[-1].readers[-1]
    edit = plan.tensors[reader.weight]
    others = sorted(set(range(edit.shape[1])) - set(edit.keep[1]))[: len(edit.keep[1])]
    wrong = replace(edit, keep={**edit.keep, 1: tuple(others)})
    assert len(others) == len(edit.keep[1])
    subject = copied(model)
    with pytest.raises(SurgeryError, match="rolled back"):
        prunus.apply_(subject, replace(plan, tensors={**plan.tensors, reader.weight: wrong}), animal.inputs(2))
    before, after = model.state_dict(), subject.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert repr(subject) == repr(model)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in subject.modules())
    assert gap(outputs(model, animal.inputs(2)), outputs(subject, animal.inputs(2))) == 0


@pytest.mark.parametrize("name", ["plain_cnn", "tied_linear", "prelu"])
def test_identity_of_what_stays(name: str) -> None:
    """Ties, frozen parameters, hooks, dtype and training flags survive removal."""
    animal, model, graph = traced(name)
    subject = copied(model).double().train()
    frozen = next(iter(subject.parameters()))
    frozen.requires_grad_(False)
    calls: list[int] = []
    subject.register_forward_hook(lambda *_: calls.append(1))
    tied = len(list(subject.named_parameters(remove_duplicate=False))) - len(list(subject.parameters()))
    pruned = prunus.apply_(subject, Plan.from_kept(graph, half_of_all(graph)), animal.inputs(2).double())
    assert pruned is subject
    assert {p.dtype for p in pruned.parameters()} == {torch.float64}
    assert not next(iter(pruned.parameters())).requires_grad
    assert len(list(pruned.named_parameters(remove_duplicate=False))) - len(list(pruned.parameters())) == tied
    assert pruned.training
    calls.clear()
    pruned(animal.inputs(2).double())
    assert calls == [1]


@pytest.mark.parametrize("name", ["instance_norm", "group_norm", "lone_piece", "heads", "residual_option_a", "lstm"])
def test_what_is_loaded_without_the_class_computes_the_same(name: str, tmp_path: Path) -> None:
    animal, model, graph = traced(name)
    inputs = animal.inputs(2)
    plan = Plan.from_kept(graph, half_of_all(graph))
    pruned, _ = apply_and_verify_(copied(model), plan, inputs)
    prunus.save(tmp_path / "artifact", pruned, plan, example_inputs=inputs)
    loaded = prunus.load(tmp_path / "artifact")
    for other in (inputs, animal.inputs(3)):
        assert gap(outputs(pruned, other), outputs(loaded.train().eval(), other)) < 1e-5
