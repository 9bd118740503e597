"""Budgets: parsing, meeting bounds on the real cost, floors, rounding, rows, and refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunus
from prunus.errors import BudgetError, ConfigError
from prunus.plan.allocation import Allocation, allocate, select
from prunus.plan.budget import Budget
from prunus.plan.cost import CostModel, count_cost
from prunus.proof.apply import apply_and_verify_


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5),
    )  # fmt: skip


GRAPH = prunus.trace(net(), torch.randn(2, 3, 8, 8))
GROUPS = GRAPH.groups()


def random_scores(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.units, generator=generator) for g in GROUPS}


def cost_of(counts: dict[str, int]) -> tuple[int, int]:
    costs = CostModel(GRAPH)
    cost = costs.at(costs.counts(counts))
    return cost.macs, cost.params


@given(
    seed=st.integers(0, 10_000),
    percent=st.integers(40, 99),
    exponent=st.sampled_from([0.0, 0.5, 1.0]),
    step=st.sampled_from([1, 4, 8]),
)
@settings(max_examples=60, deadline=None)
def test_a_global_budget_is_met_and_not_wasted(seed: int, percent: int, exponent: float, step: int) -> None:
    budget, allocation = Budget.parse(f"macs<={percent}%"), Allocation(cost_exponent=exponent, round_to=step)
    counts = allocate(GRAPH, GROUPS, random_scores(seed), budget=budget, allocation=allocation)
    dense = CostModel(GRAPH).dense().macs
    macs, _ = cost_of(counts)
    assert macs <= percent / 100 * dense
    for group in GROUPS:  # whatever is still out does not fit in
        if counts[group.name] < group.units:
            more, _ = cost_of({**counts, group.name: counts[group.name] + step})
            assert more > percent / 100 * dense


@given(seed=st.integers(0, 1000), macs=st.integers(30, 90), params=st.integers(30, 90))
@settings(max_examples=20, deadline=None)
def test_several_bounds_hold_together(seed: int, macs: int, params: int) -> None:
    for exponent in (0.0, 1.0):
        budget = Budget.parse(f"macs<={macs}%, params<={params}%")
        counts = allocate(
            GRAPH, GROUPS, random_scores(seed), budget=budget, allocation=Allocation(cost_exponent=exponent)
        )
        dense = CostModel(GRAPH).dense()
        found = cost_of(counts)
        assert found[0] <= macs / 100 * dense.macs
        assert found[1] <= params / 100 * dense.params


def test_uniform_keeps_the_same_fraction() -> None:
    counts = allocate(
        GRAPH,
        GROUPS,
        random_scores(0),
        budget=Budget.parse("macs<=40%"),
        allocation=Allocation(scope="uniform", round_to=1),
    )
    shares = [counts[g.name] / g.units for g in GROUPS]
    assert max(shares) - min(shares) < 0.1
    assert cost_of(counts)[0] <= 0.4 * CostModel(GRAPH).dense().macs


@given(st.integers(20, 95))
@settings(max_examples=20)
def test_uniform_keeps_equal_groups_equal(macs: int) -> None:
    graph = prunus.trace(
        nn.Sequential(*(m for _ in range(5) for m in (nn.Linear(24, 24), nn.ReLU()))), torch.randn(2, 24)
    )
    scores = {g.name: torch.rand(g.units) for g in graph.groups()}
    budget, uniform = Budget.parse(f"macs<={macs}%"), Allocation(scope="uniform")
    counts = allocate(graph, graph.groups(), scores, budget=budget, allocation=uniform)
    assert len(counts) == 4
    assert len(set(counts.values())) == 1


def test_units_with_the_best_scores_stay() -> None:
    scores = random_scores(3)
    counts = {g.name: g.units // 2 for g in GROUPS}
    kept = select(GROUPS, scores, counts)
    for group in GROUPS:
        stays = scores[group.name][list(kept[group.name])]
        goes = scores[group.name][[i for i in range(group.units) if i not in kept[group.name]]]
        assert stays.min() >= goes.max()


def test_counts_are_rounded() -> None:
    counts = allocate(
        GRAPH, GROUPS, random_scores(1), budget=Budget.parse("macs<=50%"), allocation=Allocation(round_to=8)
    )
    assert all(c % 8 == 0 for c in counts.values())


def test_the_floor_holds() -> None:
    scores = {g.name: torch.full((g.units,), float(i)) for i, g in enumerate(GROUPS)}
    counts = allocate(GRAPH, GROUPS, scores, budget=Budget.parse("params<=70%"), allocation=Allocation(floor=0.25))
    assert all(counts[g.name] >= 0.25 * g.units for g in GROUPS)


def test_a_ratio_removes_that_many_units() -> None:
    counts = allocate(GRAPH, GROUPS, random_scores(2), pruning_ratio=0.5)
    total = sum(g.units for g in GROUPS)
    assert abs(sum(counts.values()) / total - 0.5) < 0.02
    uniform = allocate(GRAPH, GROUPS, random_scores(2), pruning_ratio=0.25, allocation=Allocation(scope="uniform"))
    assert uniform == {g.name: round(0.75 * g.units) for g in GROUPS}


def test_rows_keep_equal_counts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, groups=4), nn.ReLU(), nn.Conv2d(32, 4, 1))
    graph = prunus.trace(model, torch.randn(2, 3, 8, 8))
    groups = graph.groups()
    scores = {g.name: torch.rand(g.units) for g in groups}
    counts = allocate(graph, groups, scores, budget=Budget.parse("macs<=50%"))
    kept = select(groups, scores, counts)
    for group in groups:
        assert group.rows is not None
        per_row = torch.bincount(torch.from_numpy(group.rows[list(kept[group.name])]), minlength=4)
        assert len(set(per_row.tolist())) == 1


@pytest.mark.parametrize(
    "text", ["", "macs", "macs<=", "macs<=0%", "macs<=120%", "time<=3", "macs>=50%", "macs<=1.2.3M", "energy<=5mj"]
)
def test_unreadable_budgets_are_refused(text: str) -> None:
    with pytest.raises(BudgetError):
        Budget.parse(text)


def test_amounts_are_read() -> None:
    limits = Budget.parse("macs<=400K, params = 3M ,weights<=12%").limits
    assert [(li.resource, li.value, li.relative) for li in limits] == [
        ("macs", 400e3, False), ("params", 3e6, False), ("weights", 0.12, True),
    ]  # fmt: skip


def test_an_impossible_budget_names_the_nearest() -> None:
    with pytest.raises(BudgetError, match="smallest reachable macs"):
        allocate(GRAPH, GROUPS, random_scores(0), budget=Budget.parse("macs<=0.1%"))


def test_bad_requests_are_refused() -> None:
    scores = random_scores(0)
    with pytest.raises(BudgetError):
        allocate(GRAPH, [], scores, budget=Budget.parse("macs<=50%"))
    with pytest.raises(BudgetError):
        allocate(GRAPH, GROUPS, scores)
    with pytest.raises(BudgetError):
        allocate(GRAPH, GROUPS, scores, pruning_ratio=1.5)
    with pytest.raises(ConfigError, match="finite"):
        allocate(GRAPH, GROUPS, {**scores, "0": torch.full((16,), float("nan"))}, pruning_ratio=0.5)
    with pytest.raises(BudgetError, match="cannot keep"):
        select(GROUPS, scores, {"0": 17})
    for bad in ({"scope": "odd"}, {"round_to": 0}, {"floor": 2.0}):
        with pytest.raises(ConfigError):
            Allocation(**bad)  # type: ignore[arg-type]


class Sliced(nn.Module):
    """One layer lies along three of the five units that can go."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mix, self.head = nn.Linear(4, 6), nn.Linear(7, 7), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        mixed = self.mix(x[..., 1:4].transpose(1, 2)).transpose(1, 2)
        return self.head(torch.cat([x[..., :1], mixed, x[..., 4:]], -1)).sum(1)


@pytest.mark.parametrize("kept", [(0, 3, 4), (0, 1, 2, 3), (2, 4), (0, 1, 4), (0, 1, 2, 3, 4)])
def test_a_plan_costs_what_its_very_units_cost(kept: tuple[int, ...]) -> None:
    x = torch.randn(2, 7, 4)
    graph = prunus.trace(Sliced(), x)
    plan = prunus.Plan.from_kept(graph, {"stem#2": kept})
    smaller, proof = apply_and_verify_(Sliced(), plan, x)
    assert proof.passed
    assert plan.after == count_cost(prunus.trace(smaller, x))


@given(seed=st.integers(0, 1000), fraction=st.floats(0.1, 1.0))
@settings(max_examples=20, deadline=None)
def test_where_layers_read_whole_groups_counts_are_enough(seed: int, fraction: float) -> None:
    counts = {g.name: max(1, round(fraction * g.units)) for g in GROUPS}
    costs = CostModel(GRAPH)
    assert costs.of(select(GROUPS, random_scores(seed), counts)) == costs.at(costs.counts(counts))


class MixedHeads(nn.Module):
    """A layer lies along the joined heads of an attention: a position goes with its head, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.mix, self.head = nn.Linear(4, 24), nn.Linear(5, 5), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        joined = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 5, -1)
        return self.head(self.mix(joined.transpose(1, 2)).transpose(1, 2)).relu().mean(1)


def test_a_plan_that_takes_a_head_costs_what_is_left() -> None:
    x = torch.randn(2, 5, 4)
    graph = prunus.trace(MixedHeads(), x)
    plan = prunus.Plan.from_kept(graph, {"qkv.heads": (1,)})
    smaller, proof = apply_and_verify_(MixedHeads(), plan, x)
    assert proof.passed
    assert plan.after == count_cost(prunus.trace(smaller, x))
