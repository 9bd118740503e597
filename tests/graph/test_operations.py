"""Operation by operation: what may go goes and equals the zeroed network, what must stay says why."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import prunus
from prunus.graph.grouping import Graph
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from prunus.runtime.calling import outputs
from zeroed import zeroed_
from zoo import Animal
from zoo_operations import CHANNELWISE, COUNTS, HEADS, MEANS, NORMS, OPERATIONS, STAYS


def some_of_each(graph: Graph, seed: int) -> dict[str, list[int]]:
    """The same number of every row, between one and all."""
    rng = np.random.default_rng(seed)
    kept = {}
    for group in graph.groups():
        rows = np.zeros(group.units, int) if group.rows is None else group.rows
        stays = rng.integers(1, (rows == 0).sum() + 1)
        chosen = [rng.permutation(np.flatnonzero(rows == row))[:stays] for row in np.unique(rows)]
        kept[group.name] = sorted(np.concatenate(chosen).tolist())
    return kept


def made(animal: Animal) -> tuple[nn.Module, Graph]:
    model = animal.make().double()
    return model, prunus.trace(model, animal.inputs(2).double())


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_frees_what_it_can(name: str) -> None:
    animal: Animal = OPERATIONS[name]
    model, graph = made(animal)
    kind, _, operation = name.partition("_")
    for free in animal.prunable:
        group = graph.group(free)
        assert group.locked is None, (free, group.locked)
        assert group.exact == (kind != "mean" or group.name.startswith("mid"))
        if kind != "heads":
            assert not group.inside_heads
    for locked, fragment in animal.locked:
        assert fragment in str(graph.group(locked).locked)
    kept = some_of_each(graph, len(operation))
    smaller, proof = apply_and_verify_(copy.deepcopy(model), Plan.from_kept(graph, kept), animal.inputs(2).double())
    assert proof.passed
    reference = zeroed_(copy.deepcopy(model), graph, kept)
    for batch in (2, 3, 1):
        wanted = outputs(reference, animal.inputs(batch).double())[0]
        found = outputs(smaller, animal.inputs(batch).double())[0]
        assert float((wanted - found).abs().max()) <= 1e-9 * float(wanted.abs().max())


@pytest.mark.parametrize("name", MEANS)
def test_what_differs_from_masking_goes_when_asked(name: str) -> None:
    model, graph = made(MEANS[name])
    kept = {group.name: list(range(0, group.units, 2)) for group in graph.groups(inexact=True)}
    assert len(kept) > 1
    smaller, proof = apply_and_verify_(model, Plan.from_kept(graph, kept), MEANS[name].inputs(2).double())
    assert not proof.exact
    assert torch.isfinite(outputs(smaller, MEANS[name].inputs(3).double())[0]).all()


@pytest.mark.parametrize("name", [name for name in NORMS if name != "distances"])
def test_a_gate_before_a_norm_is_the_only_one(name: str) -> None:
    """Half a gate halves what the norm is taken of, and nothing a second time."""
    model, graph = made(NORMS[name])
    group = next(g for g in graph.groups() if g.name.startswith("stem"))
    assert [r.output for r in group.readers] == [True]
    x = NORMS[name].inputs(2).double()
    with prunus.attach(model, graph.groups()) as gates, torch.no_grad():
        gates.fix({group.name: torch.full((group.units,), 0.5)})
        gated = model(x)
    layer = model.get_submodule(group.readers[0].module)
    handle = layer.register_forward_hook(lambda _, args, output: 0.5 * output)
    assert torch.allclose(gated, model(x))
    handle.remove()


def test_every_kind_has_its_networks() -> None:
    assert len(OPERATIONS) == sum(map(len, (CHANNELWISE, NORMS, MEANS, STAYS, COUNTS, HEADS)))
