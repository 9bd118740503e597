"""Widths are multiples of 8 without asking, finer only where the request needs it, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import BudgetError
from prunus.graph.grouping import Graph
from prunus.plan.allocation import Allocation, allocate
from prunus.plan.budget import Budget
from prunus.plan.cost import CostModel
from prunus.plan.gauge import Gauge
from prunus.plan.resources import Remains
from prunus.plan.rounding import step_of


class Attention(nn.Module):
    """Six heads of 16 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(24, 3 * 96), nn.Linear(96, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 6, 16)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


def chain(*widths: int) -> Graph:
    sizes = list(zip((5, *widths), (*widths, 3), strict=True))
    return prunus.trace(nn.Sequential(*(m for a, b in sizes for m in (nn.Linear(a, b), nn.ReLU()))), torch.randn(2, 5))


def scores_of(graph: Graph) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {g.name: torch.rand(g.units, generator=generator) for g in graph.groups()}


@pytest.mark.parametrize(
    ("units", "round_to", "step"),
    [(64, 8, 8), (16, 8, 8), (15, 8, 4), (8, 8, 4), (6, 8, 4), (4, 8, 2), (2, 8, 1), (40, 16, 16), (20, 16, 8),
     (64, 1, 1), (3, 1, 1)],
)  # fmt: skip
def test_small_groups_take_half_the_step_and_never_one_that_keeps_them_whole(
    units: int, round_to: int, step: int
) -> None:
    (group,) = chain(units).groups()
    assert step_of(group, round_to) == step


def test_heads_are_wide_enough_by_themselves() -> None:
    graph = prunus.trace(Attention(), torch.randn(2, 4, 24))
    (heads,) = [g for g in graph.groups() if g.heads_of is not None]
    assert heads.units == 6
    assert step_of(heads, 8) == 1
    assert step_of(heads, 32) == 2


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("percent", [35, 50, 70])
def test_counts_are_multiples_of_8_without_asking(scope: str, percent: int) -> None:
    graph = chain(64, 48, 12)
    allocation = Allocation(scope=scope)  # type: ignore[arg-type]
    counts = allocate(
        graph, graph.groups(), scores_of(graph), budget=Budget.parse(f"macs<={percent}%"), allocation=allocation
    )
    first, second, third = (counts[g.name] for g in graph.groups())
    assert first % 8 == second % 8 == third % 4 == 0


def test_what_8_cannot_meet_is_met_by_finer_steps_unless_8_was_asked_for() -> None:
    graph = chain(16, 16)
    few = Budget.parse("macs<=10%")
    counts = allocate(graph, graph.groups(), scores_of(graph), budget=few)
    assert max(counts.values()) < 8
    with pytest.raises(BudgetError, match="smallest reachable"):
        allocate(graph, graph.groups(), scores_of(graph), budget=few, allocation=Allocation(round_to=8))


@pytest.mark.parametrize(("block", "multiple"), [(16, 16), (8, 8)])
def test_counts_are_multiples_of_what_was_measured_to_run_at_once(block: int, multiple: int) -> None:
    plain = chain(64, 96)
    dense = CostModel(plain).dense()

    def rough(left: Remains) -> float:
        return float(left.elements[left.layout.weights].sum())

    graph = replace(plain, gauges={"latency": Gauge(rough, ((dense.weights, 4.0),), block)})
    budget, scores = Budget.parse("latency<=50%"), scores_of(plain)
    for settings in (Allocation(), Allocation(round_to="auto"), Allocation(round_to=None)):
        counts = allocate(graph, graph.groups(), scores, budget=budget, allocation=settings)
        assert all(count % multiple == 0 for count in counts.values())
        assert CostModel(graph).at(CostModel(graph).counts(counts))["latency"] <= 2.0
    finer = allocate(graph, graph.groups(), scores, budget=Budget.parse("latency<=1%"))
    assert min(finer.values()) < 8


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.3, 0.4, 0.6])
def test_a_ratio_of_a_small_group_is_met(ratio: float) -> None:
    graph = chain(12)
    ((_, kept),) = allocate(graph, graph.groups(), scores_of(graph), pruning_ratio=ratio).items()
    assert abs(12 - kept - 12 * ratio) <= 0.5


def test_rounding_changes_nothing_else() -> None:
    assert Allocation(round_to=8).scope == Allocation().scope
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3)), None
    x = torch.randn(2, 5)
    data = [(torch.randn(8, 5), torch.randint(0, 3, (8,)))]
    plans = [
        prunus.prune(
            model, x, method="l1", target="macs<=50%", data=data, loss_fn=nn.functional.cross_entropy, allocation=a
        ).plan
        for a in (None, Allocation(round_to=8))
    ]
    assert plans[0].kept == plans[1].kept
    assert plans[0].asked == plans[1].asked


def test_odd_widths_are_named_with_the_remedy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 3))
    odd = prunus.prune(model, torch.randn(2, 5), method="l1", target={"0": 13}).plan
    assert any("0 (13 of 64)" in note and "round_to=8" in note for note in odd.notes)
    even = prunus.prune(model, torch.randn(2, 5), method="l1", target="macs<=50%").plan
    assert not even.notes
