"""A resource of one's own, registered from outside: budgets, plans, tables and cards have it."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import prunus
from prunus.errors import BudgetError, ConfigError, PlanError
from prunus.formats.card import model_card
from prunus.plan.budget import Budget, Limit
from prunus.plan.cost import Cost, CostModel, count_cost
from prunus.plan.resources import RESOURCES, Remains, forms, resource
from prunus.reports.tables import before_and_after

BUILT_IN = tuple(RESOURCES)
X = torch.randn(2, 3, 8, 8)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    for name in [name for name in RESOURCES if name not in BUILT_IN]:
        RESOURCES.pop(name)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 4)
    )


def register_stored() -> None:
    @resource(
        "stored", help="bytes of all parameters in fp16", label="bytes stored",
        units={"": 1, "kb": 1e3, "mb": 1e6}, describe=lambda amount: f"{amount / 1e3:.1f} KB",
    )  # fmt: skip
    def stored(left: Remains) -> int:
        return 2 * round(float(left.elements[left.layout.trainable].sum()))


def test_a_budget_bounds_it_and_everything_shows_it() -> None:
    register_stored()
    result = prunus.prune(net(), X, method="l1", target="stored<=18.5KB, macs<=60%", progress=False)
    plan = result.plan
    assert plan.after["stored"] <= 18.5e3 < plan.before["stored"]
    assert plan.after["stored"] == 2 * plan.after.params == 2 * sum(p.numel() for p in result.model.parameters())
    assert plan.after == count_cost(prunus.trace(result.model, X))
    assert "stored" in plan.explain()
    assert " KB" in plan.explain()
    assert "| bytes stored | " in model_card(plan, {}, {})
    assert "bytes of all parameters in fp16" in forms()
    assert prunus.Plan.from_json(plan.to_json()) == plan


def test_a_plan_that_has_it_is_read_where_nobody_knows_it() -> None:
    register_stored()
    plan = prunus.prune(net(), X, method="l1", target="stored<=60%", progress=False).plan
    RESOURCES.pop("stored")
    again = prunus.Plan.from_json(plan.to_json())
    assert again.after["stored"] == plan.after["stored"]
    assert f"{plan.after['stored']:,}" in again.explain()


def test_plans_hold_the_three_that_are_always_there_and_nothing_else_by_themselves() -> None:
    plan = prunus.prune(net(), X, method="l1", target="macs<=50%", progress=False).plan
    data = json.loads(plan.to_json())
    assert list(data["before"]) == list(data["after"]) == ["macs", "params", "weights"]
    for wrong in ({"macs": 1, "params": 2}, {**data["after"], "keys": 1}, {**data["after"], "macs": 0.5}, [1, 2, 3]):
        with pytest.raises(PlanError, match="not a readable plan"):
            prunus.Plan.from_json(json.dumps({**data, "after": wrong}))


def test_it_has_a_row_in_the_table_of_a_run() -> None:
    register_stored()
    costs: dict[str, Any] = {"macs": 1000, "params": 2000, "weights": 10, "stored": 4000}
    accuracy = dict.fromkeys(("dense", "dense_test", "test", "one_shot", "batch_norm"), 50.0)
    summary = {
        "model": "net", "data": "noise", "asked": "stored<=60%", "accuracy": accuracy,
        "loss": dict.fromkeys(accuracy, 1.0), "before": costs, "after": costs,
        "speed": {"modes": [], "batch_size": 1},
    }  # fmt: skip
    console = Console(width=120)
    with console.capture() as told:
        console.print(before_and_after(summary))
    text = told.get()
    assert -1 < text.index("parameters") < text.index("MACs per example") < text.index("bytes stored")
    assert "4.0 KB" in text


def test_units_are_the_resources_own() -> None:
    register_stored()
    assert Budget.parse("stored<=3kb").limits[0].value == 3e3
    with pytest.raises(BudgetError, match=r"(?s)'m' is no unit of stored.*'kb', 'mb'"):
        Budget.parse("stored<=3M")
    with pytest.raises(BudgetError, match=r"(?s)no such resource.*latency, macs, memory, params, stored, weights"):
        Budget.parse("energy<=5mj")
    with pytest.raises(BudgetError, match="write 'macs<=50%', or experts or latency or memory or params"):
        Budget.parse(0.5)  # type: ignore[arg-type]


def test_what_has_not_been_measured_of_a_network_is_refused_before_the_work() -> None:
    measured: list[float] = []

    @resource("energy", help="joules per batch, as measured", units={"mj": 1e-3, "j": 1.0})
    def energy(left: Remains) -> float | None:
        return measured[0] * float(left.elements.sum()) if measured else None

    assert "energy" not in count_cost(prunus.trace(net(), X))
    with pytest.raises(BudgetError, match="not known of this network"):
        prunus.prune(net(), X, method="l1", target="energy<=50%", progress=False)
    with pytest.raises(BudgetError, match="no amount without a unit"):
        Budget.parse("energy<=5")
    measured.append(1e-6)
    plan = prunus.prune(net(), X, method="l1", target="energy<=8mJ", progress=False).plan
    assert plan.after["energy"] <= 8e-3 < plan.before["energy"]
    assert prunus.Plan.from_json(plan.to_json()) == plan


def test_four_bounds_at_once() -> None:
    register_stored()
    graph = prunus.trace(net(), X)
    scores = {g.name: torch.rand(g.units) for g in graph.groups()}
    settings = prunus.Allocation(cost_exponent=1.0, round_to=1)
    budget = Budget.parse("macs<=60%, params<=60%, weights<=70%, stored<=60%")
    counts = prunus.plan.allocate(graph, graph.groups(), scores, budget=budget, allocation=settings)
    costs = CostModel(graph)
    assert budget.excess(costs.at(costs.counts(counts)), costs.dense()) <= 1


@pytest.mark.parametrize("name", ["macs", "keys", "Bytes", "two words", "5ms", ""])
def test_names_that_can_be_none_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="resource"):
        resource(name, help="")


def test_capital_units_are_refused() -> None:
    with pytest.raises(ConfigError, match="small letters"):
        resource("bytes", help="", units={"KB": 1e3})


def test_a_cost_is_a_mapping_and_has_attributes_and_does_not_change() -> None:
    cost = Cost(macs=3, params=2, weights=1)
    assert dict(cost) == vars(cost) == {"macs": 3, "params": 2, "weights": 1}
    assert (cost.macs, cost["params"], len(cost)) == (3, 2, 3)
    assert cost == Cost(macs=3, params=2, weights=1) != Cost(macs=3, params=2, weights=2)
    assert copy.deepcopy(cost) == pickle.loads(pickle.dumps(cost)) == cost
    assert hash(cost) == hash(copy.copy(cost))
    assert repr(cost) == "Cost(macs=3, params=2, weights=1)"
    with pytest.raises(AttributeError, match="macs"):
        cost.macs = 4
    with pytest.raises(AttributeError):
        _ = cost.latency  # type: ignore[attr-defined]


def test_a_limit_by_hand_names_what_it_bounds() -> None:
    with pytest.raises(BudgetError, match="use one of experts, latency, macs, memory, params, weights"):
        Limit("energy", 1.0, False)
