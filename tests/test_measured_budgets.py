"""Budgets on latency and memory: tables, gauges, and plans that are made again until what is measured fits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import prunus
from prunus.errors import BudgetError, ConfigError, MissingDependencyError
from prunus.files.decoding import Malformed
from prunus.measure import gauged, layertimes, runtimes
from prunus.measure.layers import Layer, layer_run, layers_of
from prunus.measure.memory import live_memory
from prunus.measure.runtimes import check_runtime
from prunus.measure.stored import Stored
from prunus.pipeline import meeting
from prunus.plan.budget import Budget
from prunus.plan.cost import CostModel
from prunus.plan.gauge import Gauge
from prunus.plan.layercosts import LayerCosts, LayerTable, block_of
from prunus.plan.setup import Setup
from prunus.runtime.arguments import sized

X = torch.randn(2, 3, 8, 8)
WIDTHS = tuple(range(8, 65, 8))


def net(*between: int) -> nn.Module:
    torch.manual_seed(0)
    widths = (48, *between, 64)
    hidden = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
    layers = [layer for conv in hidden for layer in (conv, nn.ReLU())]
    first, last = nn.Conv2d(3, 48, 3, padding=1), nn.Linear(64, 4)
    return nn.Sequential(first, nn.ReLU(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last).eval()


def stairs(step: int) -> LayerCosts:
    """Widths cost as much as the whole blocks that hold them, on both sides, with one for the call itself."""
    line = tuple(1.0 + -(-width // step) * step * 64 for width in WIDTHS)
    return LayerCosts(WIDTHS, WIDTHS, line, line, 1.0 + step * step)


@pytest.mark.parametrize("text", ["onnx", "eager/batch=8", "openvino/threads=2", "compiled/batch=3/threads=4"])
def test_setups_are_read_as_they_are_written(text: str) -> None:
    assert str(Setup.parse(text)) == text


@pytest.mark.parametrize("text", ["tensorrt", "batch", "batch=0", "threads=-1", "onnx/", "batch=two", "onnx=3"])
def test_setups_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="says nothing"):
        Setup.parse(text)


def test_bounds_on_what_is_measured() -> None:
    budget = Budget.parse("latency@openvino/threads=2<=5ms, memory@batch=8<=60%, macs<=50%")
    latency, memory, macs = budget.limits
    assert (latency.value, latency.setup) == (5.0, Setup("openvino", threads=2))
    assert (memory.value, memory.relative, memory.setup) == (0.6, True, Setup(batch=8))
    assert macs.setup is None
    assert Budget.parse("latency<=0.002s").limits[0].value == pytest.approx(2.0)
    assert Budget.parse("latency<=60%").limits[0].setup == Setup("onnx", 1, 1)
    assert [Budget.parse(f"memory<=1{u}").limits[0].value for u in ("KB", "MiB")] == [1e3, 2**20]
    for wrong, said in (
        ("latency<=5", "without a unit"), ("macs@onnx<=50%", "however the network is run"),
        ("latency@gpu<=5ms", "says nothing"), ("latency@eager<=5ms, latency@onnx<=50%", "in one way only"),
    ):  # fmt: skip
        with pytest.raises(BudgetError, match=said):
            Budget.parse(wrong)


def test_a_runtime_that_is_not_installed_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, *_: Any) -> Any:
        raise MissingDependencyError("timing", f"{module} cannot be imported", "pip install it")

    monkeypatch.setattr(runtimes, "from_extra", missing)
    monkeypatch.setattr(runtimes, "onnx_runtime", lambda: None)
    with pytest.raises(MissingDependencyError, match="openvino"):
        prunus.prune(net(), X, method="l1", target="latency@openvino<=50%", progress=False)
    with pytest.raises(ConfigError, match="choose from"):
        check_runtime("tensorrt")


@pytest.mark.parametrize("block", [8, 16])
def test_a_table_gives_back_what_was_measured_and_rounds_up_to_blocks(block: int) -> None:
    costs = stairs(block)
    assert block_of([costs, costs]) == block
    for width, cost in zip(costs.first, costs.by_first, strict=True):
        assert costs.at(width, 64, block) == pytest.approx(cost)
        assert costs.at(64, width, block) == pytest.approx(cost)
        assert costs.at(width - 3, 64, block) == pytest.approx(cost)
    # A call of the whole is 1 + 64 * 64: both sides are factors of what is above the 1.
    assert costs.at(8, 8, block) == pytest.approx(costs.least)
    assert costs.at(32, 16, 8) == pytest.approx(1 + 32 * 16)
    grid = [[costs.at(a, b, block) for b in range(1, 65)] for a in range(1, 65)]
    assert (np.diff(grid, axis=0) >= -1e-9).all()
    assert (np.diff(grid, axis=1) >= -1e-9).all()


@pytest.mark.parametrize(
    "change",
    [{"first": [16, 8]}, {"by_first": [1.0, 0.0]}, {"by_first": [1.0]}, {"least": "1"}, {"more": 1}, {"first": [0, 8]}],
)
def test_damaged_costs_are_refused(change: dict[str, Any]) -> None:
    good = {"first": [8, 16], "second": [8], "by_first": [1.0, 2.0], "by_second": [2.0], "least": 1.0}
    assert LayerCosts.decoded(good, "layer").first == (8, 16)
    with pytest.raises(Malformed):
        LayerCosts.decoded({**good, **change}, "layer")


def test_a_table_sums_calls_and_takes_those_it_lacks_at_the_average() -> None:
    graph = prunus.trace(net(), X)
    layers = layers_of(net(), graph, X)
    table = LayerTable({"0.weight": None, "2.weight": stairs(8), "6.weight": None}, 8)
    dense = CostModel(gauged.with_gauge(graph, "latency", table)).dense()
    share = 48 * 64 * 9 * 64 / dense.macs
    assert dense["latency"] == pytest.approx((1 + 64 * 48) / share)
    assert [layer and layer.kind for layer in layers.values()] == ["conv", "conv", "linear"]
    entered = CostModel(gauged.with_gauge(graph, "latency", replace(table, entering=0.5))).dense()
    assert entered["latency"] == pytest.approx(0.5 + (1 + 64 * 48 - 0.5) / share)
    assert table.digest == replace(table, source="elsewhere").digest
    assert table.digest != replace(table, layers={"2.weight": stairs(16)}).digest


def test_a_gauge_passes_through_what_was_measured_and_never_falls() -> None:
    gauge = Gauge(lambda left: 0.0, ((100.0, 10.0),))
    assert gauge.read(50) == pytest.approx(5.0)
    better = gauge.corrected(60, 8.0)
    assert [better.read(count) for count in (60, 80, 100)] == pytest.approx([8.0, 9.0, 10.0])
    assert better.read(40) == pytest.approx(7.0)
    assert better.corrected(61, 7.5).points == ((100.0, 10.0), (61, 7.5))
    odd = better.corrected(30, 8.5)  # noise: less of it took longer
    values = [odd.read(count) for count in range(1, 120)]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(values))


LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(16, 32, 3, 2, 1), (2, 16, 9, 9)),
    (nn.Conv2d(32, 32, 3, groups=32, dilation=2), (1, 32, 9, 8)),
    (nn.Conv1d(16, 24, 5, padding=2), (3, 16, 20)),
    (nn.ConvTranspose2d(16, 24, 3, 2), (1, 16, 5, 5)),
    (nn.Linear(24, 40), (2, 7, 24)),
]
NAMES = ["strided", "depthwise", "one-dimensional", "transposed", "linear"]


@pytest.mark.parametrize(
    ("module", "shape"), LAYERS, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else ""
)
def test_layers_are_made_again_at_other_widths(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    (layer,) = layers_of(nn.Sequential(module), prunus.trace(nn.Sequential(module), x), x).values()
    assert layer is not None
    assert layer.output == module(x).numel()
    for first in (8, layer.weight[0]):
        smaller = layer.at(first, layer.weight[1])
        made = smaller.module()
        assert made.weight.shape == smaller.weight  # type: ignore[union-attr]
        assert made(torch.randn(smaller.input)).numel() == smaller.output


@pytest.mark.parametrize(
    ("module", "shape"), LAYERS, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else ""
)
def test_layers_run_in_onnx_runtime(module: nn.Module, shape: tuple[int, ...]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    x = torch.randn(shape)
    (layer,) = layers_of(nn.Sequential(module), prunus.trace(nn.Sequential(module), x), x).values()
    assert layer is not None
    (y,) = layer_run(layer, Setup(), torch.device("cpu"))()  # type: ignore[misc]
    assert y.size == layer.output


def test_example_inputs_of_any_batch_size() -> None:
    given = {"x": torch.arange(6).reshape(3, 2), "scale": torch.tensor(2.0), "table": torch.zeros(5, 3)}
    more, fewer = sized(given, 7), sized(given, 1)
    assert more["x"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3], [4, 5], [0, 1]]
    assert fewer["x"].tolist() == [[0, 1]]
    assert more["table"].shape == (5, 3)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """Puts a deterministic measurement of networks in the place of the clock; what was measured is returned."""

    def install(amount: Callable[[nn.Module], float], x: torch.Tensor = X) -> list[float]:
        seen: list[float] = []

        def made(resource: str, model: nn.Module, graph: Any, inputs: Any, setup: Any, *, progress: bool) -> Any:
            table = LayerTable({w: _line(layer) for w, layer in layers_of(model, graph, x).items()}, 8, source="a test")
            started = gauged._started(resource, table, graph, amount(model))

            def of(smaller: nn.Module) -> float:
                seen.append(amount(smaller))
                return seen[-1]

            return gauged.Measured(resource, started, amount(model), of, 0.98, f"a test of {setup}")

        monkeypatch.setattr(meeting, "measured", made)
        monkeypatch.setattr(meeting, "check_runtime", lambda _: None)
        return seen

    return install


def _line(layer: Layer | None) -> LayerCosts:
    """Proportional to both widths."""
    assert layer is not None
    first, second = (layertimes.widths_of(size) for size in layer.weight[:2])
    a, b = (tuple(w / widths[-1] * layer.output for w in widths) for widths in (first, second))
    return LayerCosts(first, second, a, b, a[0] * b[0] / layer.output)


def weights_of(model: nn.Module) -> float:
    """Far from what the table says: a root of the weights, with a part that is fixed."""
    return 0.2 + sum(p.numel() for p in model.parameters()) ** 0.75 / 10_000


@pytest.mark.parametrize("share", [90, 80, 70])
def test_plans_are_made_again_until_what_is_measured_fits(share: int, counting: Any) -> None:
    seen = counting(weights_of)
    target, model = f"latency<={share}%", net(96, 128)
    fine = prunus.Allocation(round_to=1)
    result = prunus.prune(model, X, method="l1", target=target, allocation=fine, progress=False)
    bound = share / 100 * weights_of(model)
    assert 0.95 * bound <= weights_of(result.model) <= bound
    assert 2 <= len(seen) <= 4
    assert result.plan.after["latency"] == weights_of(result.model)
    assert result.plan.before["latency"] == pytest.approx(weights_of(model))
    assert any("a test of onnx" in note and f"{len(seen)} plans" in note for note in result.plan.notes)
    again = prunus.prune(net(96, 128), X, method="l1", target=target, allocation=fine, progress=False)
    assert again.plan == result.plan  # the same table, the same plan
    assert prunus.Plan.from_json(result.plan.to_json()) == result.plan


def test_bounds_of_both_kinds_hold_together(counting: Any) -> None:
    counting(weights_of)
    result = prunus.prune(net(), X, method="l1", target="latency<=95%, macs<=30%", progress=False)
    assert weights_of(result.model) <= 0.95 * weights_of(net())
    assert result.plan.after.macs <= 0.3 * result.plan.before.macs


def test_what_is_missed_by_every_plan_is_refused(counting: Any) -> None:
    counting(lambda model: 1.0)  # nothing makes it faster
    with pytest.raises(BudgetError, match=r"is missed(.|\n)*measure"):
        prunus.prune(net(), X, method="l1", target="latency<=70%", progress=False)


def test_what_no_plan_reaches_is_refused_at_once(counting: Any) -> None:
    seen = counting(weights_of)
    with pytest.raises(BudgetError, match="smallest reachable latency"):
        prunus.prune(net(), X, method="l1", target="latency<=0.001ms", progress=False)
    assert seen == []


@pytest.mark.parametrize("target", ["memory<=60%", "memory@batch=4<=70%, macs<=90%"])
def test_memory_is_counted_of_the_network_that_comes_out(target: str) -> None:
    result = prunus.prune(net(), X, method="l1", target=target, progress=False)
    batch = 4 if "batch=4" in target else 1
    with torch.no_grad():
        before, after = (live_memory(m, sized(X, batch)) for m in (net(), result.model))
    assert (result.plan.before["memory"], result.plan.after["memory"]) == (before, after)
    assert after <= (0.7 if batch == 4 else 0.6) * before
    assert "MB" in result.plan.explain()


def test_tables_are_stored_and_read_and_not_timed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, store = net(), Stored("here", tmp_path / "tables" / "here.json")
    graph, calls = prunus.trace(model, X), 0

    def once(layer: Layer, *_: Any) -> LayerCosts:
        nonlocal calls
        calls += 1
        return replace(stairs(8), least=float(layer.output))

    monkeypatch.setattr(layertimes, "timed", once)
    table = layertimes.layer_table(model, graph, X, Setup("eager"), stored=store)
    assert calls == 3
    assert layertimes.layer_table(model, graph, X, Setup("eager"), stored=store) == table
    assert calls == 3
    assert asdict(store.read()[next(iter(store.read()))])["first"] == WIDTHS
    store.path.write_text('{"conv": {"first": []}}')
    with pytest.raises(ConfigError, match="no table"):
        store.read()


def test_the_clock_itself_on_a_small_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_TABLES", str(tmp_path))
    monkeypatch.setattr(gauged, "SECONDS", 0.1)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)).eval()
    x = torch.randn(2, 256)
    found = gauged.measured("latency", model, prunus.trace(model, x), x, Setup("eager", batch=16), progress=False)
    assert found.dense > 0
    assert found.of(model) > 0
    (file,) = tmp_path.iterdir()
    assert len(Stored("", file).read()) == 2


class Residual(nn.Module):
    """A branch of its own that may go whole."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.branch(x)
        return out


def test_blocks_that_go_are_measured_too(counting: Any) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), *(Residual(16) for _ in range(6)), nn.Linear(16, 4)), torch.randn(2, 8)
    counting(weights_of, x)
    data = [(torch.randn(8, 8), torch.randint(4, (8,))) for _ in range(2)]
    result = prunus.prune(
        model, x, method="l1", target="latency<=75%", allow=("blocks",), data=data,
        loss_fn=nn.functional.cross_entropy, repair=False, progress=False,
    )  # fmt: skip
    assert weights_of(result.model) <= 0.75 * weights_of(model)
    assert result.plan.after["latency"] == weights_of(result.model)
    assert not any("--allow blocks" in note for note in result.plan.notes)
    narrower = prunus.prune(model, x, method="l1", target="latency<=75%", progress=False)
    assert any(note.startswith("6 blocks could go whole") for note in narrower.plan.notes)
