"""Comparisons: interleaving, quartiles, memory in closed form, warnings, and modes that cannot run."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from prunus.errors import ConfigError, MissingDependencyError
from prunus.measure.memory import LiveBytes, peak_memory
from prunus.measure.speed import ModeComparison, Timing, compare, warnings_for
from prunus.plan.advice import remedies
from prunus.runtime.timing import interleaved

runtimes = importlib.import_module("prunus.measure.runtimes")


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 3))


def timing(milliseconds: float) -> Timing:
    return Timing(0.8 * milliseconds, milliseconds, 0.9 * milliseconds, 1.1 * milliseconds, milliseconds)


def test_sizes_and_memory_are_the_closed_form() -> None:
    dense, pruned, x = net(100).train(), net(40), torch.zeros(8, 10)
    found = compare(dense, pruned, x, modes=("eager",), repeats=3, warmup=1)
    counts = [10 * w + w + 3 * w + 3 for w in (100, 40)]
    assert list(found.parameters) == counts
    assert list(found.parameter_bytes) == [4 * c for c in counts]
    # The most is alive during the ReLU: its input and its output.
    assert list(found.peak_bytes) == [4 * (c + 80 + 2 * 8 * w) for c, w in zip(counts, (100, 40), strict=True)]
    assert (found.batch_size, found.device) == (8, "cpu")
    assert dense.training
    (mode,) = found.modes
    assert mode.before is not None
    assert mode.after is not None
    assert 0 < mode.before.least <= mode.before.low <= mode.before.median <= mode.before.high
    assert mode.ratio == mode.after.least / mode.before.least
    assert json.loads(json.dumps(found.to_dict()))["modes"][0]["ratio"] == mode.ratio


def test_views_count_once_and_freed_tensors_do_not() -> None:
    with LiveBytes() as counter:
        x = torch.empty(100)
        y = x.view(10, 10).t()
        assert (counter.live, counter.peak) == (400, 400)
        z = y + 1
        assert counter.live == 800
        del x, y
        assert (counter.live, counter.peak) == (400, 800)
        del z
    assert counter.live == 0


def test_memory_with_keyword_inputs() -> None:
    class Named(nn.Module):
        def forward(self, *, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    assert peak_memory(Named(), {"x": torch.zeros(5)}) == 40


def scripted_clock(costs: dict[str, float]) -> tuple[dict[str, Callable[[], None]], Callable[[], float], list[str]]:
    now, order = [0.0], []

    def runner(name: str) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            now[0] += costs[name]

        return run

    return {n: runner(n) for n in costs}, lambda: now[0], order


def test_repeats_are_interleaved_in_alternating_order() -> None:
    runs, clock, order = scripted_clock({"before": 0.004, "after": 0.003})
    before, after = interleaved(runs["before"], runs["after"], 3, 2, lambda: None, clock)
    assert before == pytest.approx([4.0] * 3)
    assert after == pytest.approx([3.0] * 3)
    assert order[:4] == ["before", "before", "after", "after"]
    assert order[6:] == ["before", "after", "after", "before", "before", "after"]


def test_short_passes_are_repeated_until_the_clock_can_see_them() -> None:
    runs, clock, order = scripted_clock({"before": 0.0005, "after": 0.004})
    before, _ = interleaved(runs["before"], runs["after"], 1, 0, lambda: None, clock)
    assert before == pytest.approx([0.5])
    assert order.count("before") == 1 + 4
    assert order.count("after") == 1 + 1


def test_it_says_where_macs_fell_and_time_did_not() -> None:
    stuck = ModeComparison("eager", timing(1.0), timing(1.0))
    fast = ModeComparison("compiled", timing(1.0), timing(0.5))
    slower = ModeComparison("onnx", timing(1.0), timing(1.5))
    (said,) = warnings_for([stuck, fast], (100, 50), "less")
    assert said.startswith("eager: MACs fell by 50 % and time did not")
    assert said.endswith("what may help: less")
    assert warnings_for([stuck, fast], (100, 100), "") == ()
    assert warnings_for([stuck, fast], None, "") == ()
    assert "slower" in warnings_for([slower], None, "")[0]
    assert "scatter" in warnings_for([ModeComparison("eager", Timing(0.5, 1, 0.5, 1.5, 1), timing(0.5))], None, "")[0]


@pytest.mark.parametrize(
    ("kept", "step"), [(37, "round_to=8:"), (40, "round_to=16:"), (48, "round_to=32:"), (64, None)]
)
def test_the_remedy_fits_the_widths(kept: int, step: str | None) -> None:
    said = remedies(net(128), net(kept), 32)
    assert ("round_to" in said) == (step is not None)
    assert step is None or step in said
    assert "depthwise" not in said
    assert "this was 32" in said


def test_narrowed_depthwise_layers_are_named() -> None:
    def mobile(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 3, groups=width), nn.Conv2d(width, 4, 1))

    assert "ignored_layers: 1)" in remedies(mobile(64), mobile(32), 1)
    assert "depthwise" not in remedies(mobile(64), mobile(64), 1)
    grey = [nn.Sequential(nn.Conv2d(1, width, 3), nn.Conv2d(width, 4, 1)) for width in (64, 32)]
    assert "depthwise" not in remedies(*grey, 1)


def test_a_mode_that_cannot_run_is_listed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C++ compiler found\nlong trace")

    def no_runtime(*_: Any) -> Any:
        raise MissingDependencyError("ONNX export", "onnxruntime is not installed", "pip install 'prunus[onnx]'")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(runtimes, "onnx_bytes", no_runtime)
    found = compare(net(20), net(10), torch.zeros(2, 10), repeats=2, warmup=0)
    eager, compiled, onnx = found.modes
    assert eager.ratio is not None
    assert compiled.reason == "RuntimeError: no C++ compiler found"
    assert onnx.reason == "onnxruntime is not installed; pip install 'prunus[onnx]'"
    assert compiled.ratio is None
    assert compiled.before is None
    assert {w.split(":")[0] for w in found.warnings if "not measured" in w} == {"compiled", "onnx"}


def test_onnx_runtime_measures() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    found = compare(net(20), net(10), torch.zeros(2, 10), modes=("onnx",), repeats=2, warmup=1)
    assert found.modes[0].reason == ""
    assert found.modes[0].ratio is not None


def test_compiled_measures_or_says_why() -> None:
    found = compare(net(20), net(10), torch.zeros(2, 10), modes=("compiled",), repeats=2, warmup=1)
    assert (found.modes[0].ratio is None) == bool(found.modes[0].reason)


@pytest.mark.parametrize(
    "arguments",
    [{"modes": ("eagre",)}, {"repeats": 0}, {"warmup": -1}, {"threads": 0}],
    ids=["modes", "repeats", "warmup", "threads"],
)
def test_impossible_requests_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        compare(net(4), net(2), torch.zeros(2, 10), **arguments)


def test_models_on_two_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="different devices"):
        compare(net(4), net(2).to("meta"), torch.zeros(2, 10))
