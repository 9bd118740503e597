"""The comparison: rivals' formulas on cases with a known answer, cells in order, rows of one cell put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.data.datasets import ArrayDataset, DataSource

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks import each other by name."""
    monkeypatch.syspath_prepend(str(FOLDER))


class Twins(nn.Module):
    """Two convolutions; of the first's four channels the last does what the first does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1, bias=False)
        with torch.no_grad():
            self.one.weight[3], self.one.bias[3] = self.one.weight[0], self.one.bias[0]  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x))).mean((2, 3))


def _data() -> DataSource:
    torch.manual_seed(1)
    images = torch.randint(0, 256, (48, 1, 6, 6), dtype=torch.uint8)
    parts = [ArrayDataset(images, torch.randint(0, 5, (48,)), (0.5,), (0.5,)) for _ in range(3)]
    return DataSource("noise", *parts, 5)


def _sites(model: nn.Module, data: DataSource) -> tuple[Any, Any, list[Any]]:
    import baselines

    graph = prunus.trace(model, data.example_inputs)
    batches = [(data.train.normalise(data.train.inputs), data.train.labels)]
    groups = list(graph.groups())
    return graph, groups[0], baselines.sites_of(model.eval(), groups, data, batches)[groups[0].name]


def test_a_map_between_channels_makes_up_for_a_channel_that_is_there_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    import baselines

    monkeypatch.setattr(baselines, "RIDGE", 1e-12)
    model, data = Twins().double().float(), _data()
    graph, group, (site,) = _sites(model, data)
    x = data.train.normalise(data.train.inputs)
    before = model(x)
    baselines.map_into_weights_(model, site, torch.tensor([True, True, True, False]))
    after = prunus.apply_(model, prunus.Plan.from_kept(graph, {group.name: [0, 1, 2]}), x)(x)
    assert torch.allclose(before, after, atol=1e-5)


def test_a_unit_that_the_rest_makes_up_for_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import baselines

    monkeypatch.setattr(baselines, "RIDGE", 1e-9)
    _, group, sites = _sites(Twins(), _data())
    worth = baselines.left_to_the_rest(Twins(), group, sites)
    first = int(worth.argmin())
    assert first in (0, 3)  # one of the twins; the other is needed then
    assert worth[first] < 1e-6 * worth.sort().values[1]


def test_the_cost_of_the_first_unit_is_what_least_squares_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """|W_j|^2 / (G^-1)_jj is the squared error of the best map from the other units, summed over outputs."""
    import baselines

    monkeypatch.setattr(baselines, "RIDGE", 0.0)
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 5))
    data = _data()
    _, group, (site,) = _sites(model, data)
    site.seen.slopes.fill_(float(site.seen.examples))
    x = model[:3](data.train.normalise(data.train.inputs)).detach().double()
    y = x @ model[3].weight.detach().double().T
    left = []
    for unit in range(6):
        others = x[:, [j for j in range(6) if j != unit]]
        left.append(float((y - others @ torch.linalg.lstsq(others, y).solution).square().sum() / len(x)))
    worth = baselines.left_to_the_rest(model, group, [site])
    assert float(worth.min()) == pytest.approx(min(left), rel=1e-6)
    assert int(worth.argmin()) == left.index(min(left))


def test_the_mean_of_what_goes_is_in_the_bias() -> None:
    import baselines

    torch.manual_seed(3)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 5, bias=False))
    data, model = _data(), baselines.with_biases(dense)
    graph, group, (site,) = _sites(model, data)
    x = data.train.normalise(data.train.inputs)
    before = dense(x)
    baselines.mean_into_bias_(model, site, torch.tensor([True, False, True, True, False, True]))
    after = prunus.apply_(model, prunus.Plan.from_kept(graph, {group.name: [0, 2, 3, 5]}), x)(x)
    assert torch.allclose(before.mean(0), after.mean(0), atol=1e-6)
    assert not torch.allclose(before, after, atol=1e-3)


def test_damage_is_the_diagonal_of_the_kronecker_precision() -> None:
    import baselines

    torch.manual_seed(4)
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 5)), _data()
    _, group, sites = _sites(model, data)
    x = model[:3](data.train.normalise(data.train.inputs)).detach()
    logits = model[3](x)
    slopes = logits.softmax(1) - F.one_hot(data.train.labels, 5)
    precision = slopes.square().mean(0)[:, None] * x.square().mean(0)
    wanted = (model[3].weight.square() * precision).sum(0).detach().double()
    assert torch.allclose(baselines.posterior_damage(model, group, sites), wanted, rtol=1e-4)


@pytest.mark.parametrize("label", ["OPD", "OBS", "VBP", "GRAIL"])
def test_baselines_meet_the_budget_and_leave_the_dense_network_alone(label: str) -> None:
    import baselines
    from limits import Limit, macs_of

    dense, data = Twins().eval(), _data()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    batches = [(data.train.normalise(data.train.inputs), data.train.labels)]
    limit = Limit.of(60, dense, data.example_inputs)
    smaller = baselines.cut_by_baseline(label, dense, data, batches, limit, [])
    assert macs_of(smaller, data.example_inputs) <= 0.6 * macs_of(dense, data.example_inputs)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


@pytest.mark.parametrize("name", ["rbp", "sbp", "vib", "l0", "bmrs", "dpp"])
@pytest.mark.parametrize("repair", [False, True])
def test_methods_that_train_along_meet_a_budget_with_and_without_repair(name: str, repair: bool) -> None:
    import ours
    from prunus.data.datasets import Batches

    torch.manual_seed(5)
    dense, data = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 5)), _data()
    batches = Batches(data.train, 16, shuffle=True, seed=0)
    _, plan, error = ours.cut_by_ours(name, dense, data, batches, "macs<=50%", [], repair=repair, steps=4, seed=0)
    assert plan.after.macs <= 0.5 * plan.before.macs
    assert error < 1e-4


def test_cells_come_in_the_order_of_seeds_and_say_the_resource() -> None:
    import compare

    table = {"nets": ["lenet5"], "targets": [50], "recoveries": [], "seeds": [0, 1]}
    asked = {"methods": ["l1"], "rivals": ["VBP"], "repair": [False, True],
             "tables": [table, {**table, "targets": [60], "resource": "latency"}]}  # fmt: skip
    found = compare.cells(asked)
    assert [c.seed for c in found] == [0] * 6 + [1] * 6
    assert [c.target for c in found[:6]] == [50] * 3 + ["latency 60"] * 3
    assert [(c.method, c.repair) for c in found[:3]] == [("l1", False), ("l1", True), ("VBP", False)]


def test_a_limit_is_read_from_a_cell() -> None:
    from limits import Limit

    assert Limit.of(50, nn.Identity(), torch.zeros(1)).text == "macs<=50%"
    assert Limit.of("latency 60", nn.Identity(), torch.zeros(1)).text == "latency<=60%"


def test_rows_of_a_cell_with_other_recoveries_are_one(tmp_path: Path) -> None:
    import plots

    key = {"net": "a", "target": 50, "method": "l1", "repair": False, "seed": 0}
    rows = [{**key, "one-shot": {"score": 1.0}}, {**key, "one-shot": {"score": 2.0}, "epochs=5": {"score": 3.0}}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "seed": 1}]))
    found = plots.rows_of(path)
    assert [(r["seed"], r["one-shot"]["score"], "epochs=5" in r) for r in found] == [(0, 1.0, True), (1, 1.0, False)]


def _row(method: str, repair: bool, seed: int, score: float, target: int | str = 50) -> dict[str, Any]:
    costs = {"macs": 0.5, "params": 0.5, "pruning_seconds": 1, "dense": 90.0}
    return {"net": "a", "target": target, "method": method, "repair": repair, "seed": seed, **costs,
            "one-shot": {"score": score}}  # fmt: skip


def test_the_verdict_tells_rivals_without_our_repair_from_our_own_rows_with_it() -> None:
    import plots

    ways = {("dirichlet", True): 80.0, ("dirichlet", False): 85.0, ("VBP", False): 78.0, ("l1", True): 81.0}
    rows = [_row(*way, seed, score + seed) for way, score in ways.items() for seed in (0, 2)]
    told = plots.verdict(rows)
    assert "+2.00 (+1.4 pooled std) to the best without our repair (VBP)" in told
    assert "-1.00 (-0.7 pooled std) to the best other with our repair (l1)" in told


def test_one_seed_has_no_verdict() -> None:
    import plots

    rows = [_row("dirichlet", True, 0, 80.0), _row("VBP", False, 0, 78.0)]
    assert plots.verdict(rows) == plots.ONE_SEED


def test_the_best_of_each_family_is_drawn_by_name() -> None:
    import curves

    scores = {("dirichlet", True): 1.0, ("l1", True): 2.0, ("taylor", True): 3.0, ("l1", False): 4.0,
              ("sbp", False): 5.0, ("l0", False): 4.0, ("TP group norm", False): 6.0, ("OPD", False): 7.0}  # fmt: skip
    rows = [_row(*way, 0, score) for way, score in scores.items()]
    assert curves.best_of_each(rows, ["one-shot"]) == {
        ("dirichlet", True): "ours", ("taylor", True): "repaired", ("l1", False): "criterion",
        ("sbp", False): "trains along", ("TP group norm", False): "Torch-Pruning", ("OPD", False): "OPD",
    }  # fmt: skip


def test_cells_whose_package_is_missing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import compare

    cells = [compare.Cell("lenet5", t, m, False, 0, ()) for t in (50, "latency 60") for m in ("l1", "TP group norm")]
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: None)
    assert [(c.target, c.method) for c in compare.runnable(cells)] == [(50, "l1")]
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: name)
    assert compare.runnable(cells) == cells


class _Size(nn.Module):
    """A network of which only how much is gone counts."""

    def __init__(self, gone: float) -> None:
        super().__init__()
        self.gone = gone


def test_the_search_finds_the_least_cut_and_where_latency_does_not_fall_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    import limits
    from prunus.errors import BudgetError

    def cut(gone: float) -> _Size:
        if gone > 0.9:
            raise BudgetError("budget", "out of reach", "raise it")
        return _Size(gone)

    def found(resource: str, enough: Any) -> float | None:
        monkeypatch.setattr(limits.Limit, "met", lambda self, model: enough(model.gone))
        model = limits.Limit(resource, 0.5, nn.Identity(), None).largest(cut)
        return None if model is None else model.gone

    assert found("macs", lambda gone: gone >= 0.3) == pytest.approx(0.3, abs=2**-12)
    assert found("latency", lambda gone: gone >= 0.3) == pytest.approx(0.3, abs=1 / 96)
    assert found("latency", lambda gone: 0.24 <= gone <= 0.26 or gone >= 0.6) == pytest.approx(0.24, abs=1 / 96)
    assert found("macs", lambda gone: gone >= 0.95) is None
    assert found("latency", lambda gone: gone >= 0.95) is None


def test_rows_without_a_network_are_not_shown(tmp_path: Path) -> None:
    import plots

    key = {"net": "a", "target": 50, "method": "l1", "repair": False, "seed": 0}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**key, "refused": "no budget reaches it"}) + "\n")
    assert plots.rows_of(path) == []
