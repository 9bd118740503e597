"""Whatever the network, removal is proven equal to masking, or something is refused with a reason (fuzzing)."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from examine import KINDS, Kind, examine, program_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import ON_IMAGES, ON_TOKENS, Step, image_net, programs, token_net
from torch import Tensor, nn

import prunus
from prunus.errors import SurgeryError
from prunus.graph.grouping import Graph
from prunus.plan.cost import count_cost
from prunus.proof.apply import apply_and_verify_
from prunus.runtime.calling import outputs
from zeroed import zeroed_
from zoo import untidy

EXAMPLES = int(os.environ.get("PRUNUS_FUZZ", "30"))
EXPLORE = int(os.environ.get("PRUNUS_EXPLORE", "0"))
FEW, MANY = 8, 2000
"""Networks of each kind with steps of all sorts: always, and with PRUNUS_EXPLORE=1 (or as many as it says)."""
Maker = Callable[[list[Step]], tuple[nn.Module, Tensor]]


def some_of_each_row(graph: Graph, rng: np.random.Generator) -> dict[str, list[int]]:
    kept = {}
    for group in graph.groups():
        rows = np.zeros(group.units, int) if group.rows is None else group.rows
        size = int((rows == 0).sum())
        stays = rng.integers(1, size + 1)
        kept[group.name] = sorted(
            int(u) for row in np.unique(rows) for u in rng.permutation(np.flatnonzero(rows == row))[:stays]
        )
    return kept


def made(make: Maker, program: list[Step]) -> tuple[nn.Module, Tensor]:
    """The same network every time (its steps are closures, which copies would share)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = make(program)
        return untidy(model).eval(), x


@pytest.mark.parametrize(("make", "names"), [(token_net, tuple(ON_TOKENS)), (image_net, tuple(ON_IMAGES))])
def test_removal_equals_masking_in_any_network(make: Maker, names: tuple[str, ...]) -> None:
    refused = []

    @given(programs(names, 28), st.integers(0, 10**6))
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    def check(program: list[Step], seed: int) -> None:
        model, x = made(make, program)
        graph = prunus.trace(model, x)
        kept = some_of_each_row(graph, np.random.default_rng(seed))
        if not kept:
            assert all(g.locked or not g.exact for g in graph.channel_groups)
            return
        plan = prunus.Plan.from_kept(graph, kept)
        untouched = made(make, program)[0]
        try:
            smaller, proof = apply_and_verify_(untouched, plan, x)
        except SurgeryError:
            assert torch.equal(outputs(untouched, x)[0], outputs(model, x)[0])
            refused.append((program, seed))
            return
        assert proof.passed
        wanted, found = outputs(zeroed_(model, graph, kept), x)[0], outputs(smaller, x)[0]
        assert float((wanted - found).abs().max()) <= 1e-4 * float(wanted.abs().max()) + 1e-6
        again = prunus.trace(smaller, x)
        if len(again.contractions) == len(graph.contractions):  # nothing was cut away that no output needs
            assert plan.after == count_cost(again)

    check()
    for program, seed in refused:
        print("refused:", seed, program)
    assert len(refused) <= 1 + EXAMPLES // 200


ONCE_REFUSED = [
    (token_net, 137393, "fused_attention 7 8 4 8, shared 9 6 9 3, split 11 10 10 2, shared 0 6 2 2, shared 9 6 9 3"),
]


@pytest.mark.parametrize(("make", "seed", "program"), ONCE_REFUSED)
def test_networks_that_were_refused_once(make: Maker, seed: int, program: str) -> None:
    """One layer that reads heads and then its own output, whose columns are tied over all heads."""
    steps = [Step(name, *map(int, numbers)) for name, *numbers in (step.split() for step in program.split(", "))]
    model, x = made(make, steps)
    graph = prunus.trace(model, x)
    kept = some_of_each_row(graph, np.random.default_rng(seed))
    assert "knows nothing of whole rows" in str(graph.group("steps.0.heads").locked)
    _, proof = apply_and_verify_(model, prunus.Plan.from_kept(graph, kept), x)
    assert proof.passed


def test_units_that_are_tied_already_are_not_tied_again_for_ever() -> None:
    text = "activation 0 4 10 11, grouped 11 8 2 4, multiply 0 9 11 8, chunk 5 11 6 8, multiply 8 3 3 3, add 7 0 0 10, "
    steps = [Step(name, *map(int, n)) for name, *n in (s.split() for s in (text + "grouped 11 8 2 4").split(", "))]
    model, x = made(image_net, steps)
    graph = prunus.trace(model, x)
    kept = some_of_each_row(graph, np.random.default_rng(100001))
    _, proof = apply_and_verify_(model, prunus.Plan.from_kept(graph, kept), x)
    assert proof.passed


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_all_steps_are_proven_or_refused(kind: Kind) -> None:
    """The first few seeds always; with PRUNUS_EXPLORE new ones, drawn from the clock (printed if one is wrong)."""
    first = int(time.time()) if EXPLORE else 0
    ends: Counter[str] = Counter()
    for seed in range(first, first + (FEW if not EXPLORE else MANY if EXPLORE == 1 else EXPLORE)):
        try:
            ends[examine(kind, program_of(kind, seed), seed)] += 1
        except Exception as error:
            raise AssertionError(f"{kind} network of seed {seed}: {error}") from error
    print(kind, dict(ends))
    assert ends["proven"] + ends["rewritten"] > ends.total() / 4
    assert ends["refused"] <= 1 + ends.total() // 100
