"""What was asked is met or refused before the learning: ties, impossible requests, arguments without an effect."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunus
from prunus.data.datasets import ArrayDataset, Batches, DataSource
from prunus.errors import BudgetError, ConfigError, PlanError, PruneError
from prunus.methods.criteria import Taylor
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.pipeline.prune import prune
from prunus.plan.allocation import Allocation, allocate
from prunus.plan.budget import Budget, Limit
from prunus.plan.ranking import merged_ranks
from prunus.plan.request import ALLOW, allowed
from prunus.recovery.config import FinetuneConfig


def net(widths: tuple[int, ...] = (12, 12)) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in zip((6, *widths[:-1]), widths, strict=True):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 3)).eval()


X = torch.randn(2, 6)


class Spy:
    """Batches that nobody may read."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        raise AssertionError("the data were read before the request was refused")


def removed(result: prunus.Result) -> int:
    return sum(g.units - len(g.kept) for g in result.plan.groups)


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.75])
@pytest.mark.parametrize("method", ["l1", "bn_scale"])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_a_ratio_is_met_on_ties(ratio: float, method: str, scope: Any) -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[6:] = 0
        model[3].weight.zero_()
    result = prune(model, X, method=method, target=ratio, allocation=Allocation(scope=scope, round_to=1))
    assert removed(result) >= math.floor(24 * ratio)
    assert removed(result) <= math.ceil(24 * ratio) + (scope == "uniform")  # of groups of one size, one each


@given(
    values=st.lists(
        st.lists(st.sampled_from([0.0, 1e-30, 1.0, 1e38]), min_size=1, max_size=12), min_size=1, max_size=4
    ),
    seed=st.integers(-(2**62), 2**62 - 1),
)
@settings(max_examples=60)
def test_ranks_order_all_units_and_share_ties_out(values: list[list[float]], seed: int) -> None:
    lines = [np.sort(np.array(v))[::-1] for v in values]
    ranks = merged_ranks(lines, seed)
    assert sorted(np.concatenate(ranks).tolist()) == list(range(sum(map(len, lines))))
    assert all((np.diff(r) < 0).all() for r in ranks)
    by_place = np.concatenate(lines)[np.argsort(np.concatenate(ranks))]
    assert (np.diff(by_place) >= 0).all()
    for value in {v for line in values for v in line}:
        runs = [r[line == value] for line, r in zip(lines, ranks, strict=True)]
        places = np.sort(np.concatenate(runs))
        for number, place in enumerate(places):  # so many of all that tie, and of each group its share
            for run in runs:
                assert abs((run < place).sum() - number * len(run) / len(places)) < 2


@pytest.mark.parametrize("budget", ["macs<=50%", "macs<=50%, params<=45%, weights<=70%"])
@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_equal_scores_empty_no_group(budget: str, exponent: float) -> None:
    graph = prunus.trace(net((16, 16, 16)), X)
    groups, equal = graph.groups(), {g.name: torch.full((g.units,), 1e-30) for g in graph.groups()}
    settings = Allocation(cost_exponent=exponent, round_to=1)
    for seed in range(2):
        counts = allocate(graph, groups, equal, budget=Budget.parse(budget), allocation=settings, seed=seed)
        assert max(counts.values()) - min(counts.values()) <= 2
        again = allocate(graph, groups, equal, budget=Budget.parse(budget), allocation=settings, seed=seed)
        assert counts == again


@given(seed=st.integers(0, 999), ratio=st.floats(0.01, 0.9), round_to=st.sampled_from([1, 4, 8]))
@settings(max_examples=25, deadline=None)
def test_a_ratio_removes_no_less_than_asked_or_is_refused(seed: int, ratio: float, round_to: int) -> None:
    graph = prunus.trace(net((16, 12)), X)
    generator = torch.Generator().manual_seed(seed)
    scores = {g.name: torch.randint(0, 3, (g.units,), generator=generator).float() for g in graph.groups()}
    for scope in ("global", "uniform"):
        try:
            counts = allocate(
                graph, graph.groups(), scores, pruning_ratio=ratio,
                allocation=Allocation(scope=scope, round_to=round_to), seed=seed,
            )  # fmt: skip
        except BudgetError:  # what the floors and multiples leave
            assert ratio > 1 - (16 + 12) / 28 * 2 * round_to / 28 - 1 / 28
            continue
        gone = 28 - sum(counts.values())
        assert gone >= round(ratio * 28)
        assert gone < round(ratio * 28) + (2 * round_to if scope == "uniform" else round_to)


def test_remarks_say_what_was_met() -> None:
    plan = prune(net(), X, method="l1", target="macs<=100%").plan
    assert "meets the request already" in plan.explain()
    nearest = prune(net(), X, method="l1", target=0.3, allocation=Allocation(round_to=6)).plan
    assert "12 of 24 units go, 50.0% for 30.0%" in nearest.explain()
    assert "equal scores" in prune(net(), X, method="bn_scale", target=0.5).plan.explain()
    assert prune(net(), X, method="l1", target=0.5).plan.notes == ()


IMPOSSIBLE: list[dict[str, Any]] = [
    {"target": "macs<=0.01%"},
    {"target": "macs<=1, params<=90%"},
    {"target": ["macs<=50%"]},
    {"target": "2:4"},
    {"target": {"0": "weight 10%"}},
    *({"target": r} for r in (-0.1, 0, 1, 1.0, 7, float("nan"), float("inf"), "half", True, 0.99)),
    {"target": 0.5, "allocation": Allocation(floor=0.9)},
    {"target": "macs<=50%", "allocation": Allocation(floor=1)},
    *({"target": {"0": c}} for c in (0, -1, 13, 99, 2.5, 6.0, True, "6", None, float("nan"))),
    {"target": {}},
    {"target": {"nothing": 3}},
    {"target": {3: 3}},
    {"target": 5},
    {"target": {"0": 6}, "allocation": Allocation()},
    *({"target": 0.5, "allow": a} for a in ("inexact", ["blocks"], 3)),
    {"target": "macs<=50%", "allocation": "uniform"},
    {"target": "macs<=50%", "ignored_layers": "0"},
    *({"target": "macs<=50%", "seed": s} for s in (None, "0", 1.5, True, 2**70, -(2**70))),
]


@pytest.mark.parametrize("method", ["dirichlet", "rbp"])
@pytest.mark.parametrize("request_", IMPOSSIBLE, ids=str)
def test_the_impossible_is_refused_before_the_learning(method: str, request_: dict[str, Any]) -> None:
    with pytest.raises(PruneError, match="fix:"):
        prune(net(), X, method=method, data=Spy(), loss_fn=F.cross_entropy, **request_)  # type: ignore[arg-type]


def test_rows_take_multiples_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, groups=4), nn.ReLU(), nn.Conv2d(32, 4, 1))
    with pytest.raises(BudgetError, match="multiple of 4"):
        prune(model, torch.randn(2, 3, 8, 8), method="dirichlet", data=Spy(), loss_fn=F.cross_entropy,
              target={"0": 6})  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize("seed", [np.int64(3), np.int32(-3), -7, 2**61])
def test_seeds_are_whole_numbers_of_any_kind(seed: Any) -> None:
    batches = [(torch.randn(8, 6), torch.randint(0, 3, (8,)))]
    for method in ("random", "taylor"):
        plans = [
            prune(net(), X, method=method, target=0.5, seed=seed, data=batches, loss_fn=F.cross_entropy).plan
            for _ in range(2)
        ]
        assert plans[0].kept == plans[1].kept


def test_arguments_without_an_effect_are_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="no stages"):
        prune(net(), X, method="l1", target=0.5, checkpoint=tmp_path / "stages.pt")
    with pytest.raises(ConfigError, match="itself decides"):
        prune(net(), X, method=RecursiveBayesianPruning(), data=Spy(), loss_fn=F.cross_entropy,
              allocation=Allocation(floor=0.5))  # type: ignore[arg-type]  # fmt: skip
    for scope in ("measured", "uniform"):
        with pytest.raises(ConfigError, match="does not use it"):
            Allocation(scope=scope, cost_exponent=1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [{"scope": 3}, {"round_to": 2.5}, {"round_to": True}, {"round_to": "8"}, {"floor": "half"}, {"floor": math.nan},
     {"cost_exponent": math.nan}, {"cost_exponent": -1.0}, {"cost_exponent": "1"}],
    ids=str,
)  # fmt: skip
def test_allocations_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Allocation(**bad)


@given(st.one_of(st.text(), st.from_regex(r"(macs|params|weights|time) ?<?= ?[\d.eE+-]*[%kMGb]?(, ?macs<=\d+%)?")))
@settings(max_examples=300)
def test_any_text_is_a_budget_or_a_budget_error(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except BudgetError:
        return
    assert all(0 < limit.value < math.inf for limit in budget.limits)


@pytest.mark.parametrize("text", ["macs<=.", "macs<=1e999", "macs<=1e-999", "macs<=٣", "macs<=1e", "macs<=%"])
def test_numbers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(BudgetError):
        Budget.parse(text)


def test_limits_made_by_hand_are_checked() -> None:
    for bad in (("time", 1.0, False), ("macs", math.nan, False), ("macs", 2.0, True), ("macs", "1", False)):
        with pytest.raises(BudgetError):
            Limit(*bad)  # type: ignore[arg-type]


def test_of_three_bounds_each_has_a_weight() -> None:
    class Wide(nn.Module):
        """The group in the middle alone holds many parameters; the bound on them is the second of three."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.third, self.last = nn.Linear(16 * 4, 256), nn.Linear(256, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.adaptive_avg_pool2d(self.second(self.first(x).relu()).relu(), 2)
            return self.last(self.third(x.flatten(1)).relu())

    graph = prunus.trace(Wide(), torch.randn(2, 3, 8, 8))
    groups = graph.groups()
    scores = {g.name: torch.rand(g.units, generator=torch.Generator().manual_seed(1)) + 0.5 for g in groups}
    exponent = Allocation(cost_exponent=1.0, round_to=1)
    loose = "macs<=95%, params<=40%, weights<=95%"
    three = allocate(graph, groups, scores, budget=Budget.parse(loose), allocation=exponent)
    alone = allocate(graph, groups, scores, budget=Budget.parse("params<=40%"), allocation=exponent)
    value = {name: sum(scores[n].sort(descending=True).values[:c].sum() for n, c in counts.items())
             for name, counts in (("three", three), ("alone", alone))}  # fmt: skip
    assert value["three"] >= 0.9 * value["alone"]


def test_kept_indices_are_whole_numbers() -> None:
    graph = prunus.trace(net(), X)
    for bad in ([True, False], torch.ones(12, dtype=torch.bool), np.ones(12, bool), [0.5, 1.2], torch.ones(3), ["0"]):
        with pytest.raises(PlanError, match="whole numbers"):
            prunus.Plan.from_kept(graph, {"0": bad})  # type: ignore[dict-item]
    assert prunus.Plan.from_kept(graph, {"0": np.array([2, 0])}).kept["0"] == (0, 2)  # type: ignore[dict-item]


@pytest.mark.parametrize("seed", [None, "0", 1.5, True, 2**70])
def test_every_door_takes_the_same_seeds(seed: Any) -> None:
    model, batches = net(), [(torch.randn(8, 6), torch.randint(0, 3, (8,)))]
    groups = prunus.trace(model, X).groups()
    part = ArrayDataset(batches[0][0], batches[0][1])
    source, method = DataSource("toy", part, part, part, 3), prunus.DynamicProbabilisticPruning("weight 50%", epochs=1)
    calls: list[Callable[[], Any]] = [
        lambda: prunus.fit(model, groups, Taylor(), batches, F.cross_entropy, num_data=8, seed=seed),
        lambda: prunus.prune(model, X, method=method, data=batches, loss_fn=F.cross_entropy, seed=seed),
        lambda: prunus.compress(model, source, target="macs<=50%", seed=seed),
        lambda: prunus.compress(model, source, method=method, seed=seed),
        lambda: FinetuneConfig(seed=seed),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="seed"):
            call()


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "64", None])
def test_batch_sizes_are_numbers_of_examples(size: Any) -> None:
    with pytest.raises(ConfigError):
        Batches(ArrayDataset(torch.randn(8, 6), torch.arange(8)), size)


def test_allow_may_not_be_used_up() -> None:
    with pytest.raises(ConfigError, match="allow"):
        allowed((name for name in ["inexact"]), method="l1", takes=ALLOW)  # type: ignore[arg-type]
