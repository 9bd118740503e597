"""Keep probabilities from the learning to the plan, its file and its words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.learning.findings import Scores
from prunus.learning.spread import SIGNS
from prunus.methods.registry import resolve
from prunus.pipeline.planning import make_plan
from prunus.plan.allocation import Allocation
from prunus.posteriors.dirichlet import DirichletPosterior


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def batches(count: int = 6, *, alike: bool = False) -> list[tuple[Tensor, Tensor]]:
    stream = torch.Generator().manual_seed(1)
    made = [(torch.randn(16, 6, generator=stream), torch.randint(3, (16,), generator=stream)) for _ in range(count)]
    return made[:1] * count if alike else made


def learned(method: str, data: list[tuple[Tensor, Tensor]], **settings: object) -> Scores:
    model = network()
    groups = prunus.trace(model, data[0][0]).groups()
    return prunus.fit(model, groups, replace(resolve(method), **settings), data, F.cross_entropy, num_data=96)


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_batches_that_are_all_alike_leave_no_doubt(name: str) -> None:
    alike, apart = learned(name, batches(alike=True)), learned(name, batches())
    assert alike.replicas["0"].shape == (2 * SIGNS, 12)
    torch.testing.assert_close(alike.replicas["0"], alike.values["0"].expand(2 * SIGNS, -1))
    torch.testing.assert_close(apart.replicas["0"].mean(0), apart.values["0"])
    assert bool((apart.replicas["0"].std(0) > 0).all())
    assert not learned(name, batches(1)).replicas


def test_magnitudes_of_sums_of_both_signs_state_nothing() -> None:
    assert not learned("taylor", batches(), per_example=False).replicas


def test_a_plan_with_rows_states_them_row_by_row() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2), nn.Flatten(), nn.Linear(32, 3))
    graph = prunus.trace(net, torch.randn(2, 3, 2, 2))
    score = torch.arange(8.0, 0, -1)
    for found in (
        Scores({"0": score}, replicas={"0": score.expand(2, -1)}, method="mine"),
        Scores({"0": score}, {"0": posterior(8)}, method="mine"),
    ):
        (group,) = make_plan(graph, [graph.group("0")], found, kept_counts={"0": 4}).groups[:1]
        assert group.kept == (0, 1, 4, 5)
        assert group.keep_probability is not None
        assert min(group.keep_probability[u] for u in group.kept) > 0.5


def posterior(units: int) -> DirichletPosterior:
    q = DirichletPosterior(units)
    with torch.no_grad():
        q.rho.copy_(torch.linspace(6, 0, units))
    return q


def test_only_what_is_learned_is_uncertain() -> None:
    data = batches()
    assert learned("dirichlet", data, min_steps=12).replicas["0"].shape == (2, 12)
    assert not learned("l1", data).replicas
    assert not learned("rbp", data, epochs=1).replicas


def plan_of(scores: Scores, keep: int = 6) -> prunus.Plan:
    graph = prunus.trace(network(), torch.zeros(2, 6))
    return make_plan(graph, graph.groups(), scores, kept_counts={"0": keep}, allocation=Allocation(round_to=1))


def test_a_plan_states_them_and_names_the_undecided(tmp_path: Path) -> None:
    score = torch.tensor([9.0, 8, 7, 6, 5, 4.05, 4, 0.6, 0.5, 0.4, 0.3, 0.2])
    apart = torch.tensor([0.05, -0.05] * 6)
    found = Scores({"0": score}, replicas={"0": torch.stack([score + apart, score - apart])}, method="mine")
    plan = plan_of(found)
    stated = plan.groups[0].keep_probability
    assert stated is not None
    assert sum(stated) == pytest.approx(6, abs=1e-3)
    assert plan.groups[0].undecided == (5, 6)
    assert stated[5] > 0.5 > stated[6]
    assert "undecided in 0: 5, 6\n" in plan.explain()
    plan.save(tmp_path / "plan.json")
    assert prunus.Plan.load(tmp_path / "plan.json") == plan
    sure = plan_of(Scores({"0": score}, replicas={"0": score.expand(2, -1)}, method="mine"))
    assert sure.groups[0].undecided == ()
    assert "undecided in" not in sure.explain()


def test_without_replicas_the_posterior_answers() -> None:
    q = DirichletPosterior(12)
    with torch.no_grad():
        q.rho.copy_(torch.linspace(3, 0, 12))
    plan = plan_of(Scores({"0": q.score()}, {"0": q}, method="mine"))
    torch.testing.assert_close(torch.tensor(plan.groups[0].keep_probability), q.keep_probability(6), atol=1e-4, rtol=0)
    assert plan_of(Scores({"0": q.score()}, method="mine")).groups[0].keep_probability is None
