"""`prunus plan` foresees what `compress` does: the same budget and costs, measured on few examples, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.cli.app import main
from prunus.data import ArrayDataset, DataSource
from prunus.errors import ConfigError
from prunus.methods.registry import METHODS
from prunus.pipeline.duration import duration_before, learning_steps
from prunus.pipeline.forecast import forecast, stand_in
from prunus.runtime.arguments import sized
from prunus.runtime.progress import spoken

MINE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))

def data():
    draw = torch.Generator().manual_seed(0)
    return 2 * ([(torch.randn(16, 6, generator=draw), torch.arange(16) % 3) for _ in range(4)],)
"""


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def data() -> DataSource:
    part = ArrayDataset(torch.randn(96, 6, generator=torch.Generator().manual_seed(0)), torch.arange(96) % 3)
    return DataSource("toy", part, part, part, 3)


def test_the_plan_of_a_method_that_looks_is_the_plan_that_is_made() -> None:
    source = data()
    seen = forecast(net(), source, method="l1", target="macs<=50%", examples=96)
    made = prunus.compress(
        net(), source, method="l1", target="macs<=50%", progress=False, run=prunus.RunSettings(modes=())
    )
    assert seen.plan.kept == made.result.plan.kept
    assert seen.plan.after == made.result.plan.after
    assert seen.dense.loss == pytest.approx(made.loss["dense"], rel=1e-5)
    assert seen.cut.loss == pytest.approx(made.loss["one_shot"], rel=1e-4)
    assert seen.looked_by == "l1"


def test_methods_that_learn_are_replaced_by_ones_that_look() -> None:
    seen = forecast(net(), data(), target="macs<=50%", recovery=prunus.FinetuneConfig(epochs=3), examples=64)
    assert seen.looked_by == "taylor in place of dirichlet"
    assert seen.plan.after.macs <= 0.5 * seen.plan.before.macs
    assert seen.duration is not None
    assert seen.duration.steps == 200 + 3 * 2  # 96 examples are two batches of 64
    assert seen.duration.seconds > 0
    masks = forecast(net(), data(), method="dpp", target="2:3", examples=64)
    assert [p.pattern for p in masks.plan.patterns] == ["2:3"]
    for name, kind in METHODS.items():
        method = kind()
        assert learning_steps(stand_in(method), 5, 2) <= learning_steps(method, 5, 2), name


def test_what_only_the_run_finds_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="finds out while it learns"):
        forecast(net(), data(), method="rbp")
    with pytest.raises(ConfigError, match="found by testing"):
        forecast(net(), data(), target="accuracy>=dense-1%@95%")


def test_plan_on_the_command_line_writes_the_plan_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    words = ["plan", "mine.py:net", "--data", "mine.py:data", "--target", "macs<=50%", "--out", "run", "--json"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--save", "plan.json"])
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    plan = prunus.Plan.load("plan.json")
    assert told["kept"] == {g.name: [len(g.kept), g.units] for g in plan.groups}
    assert told["after"] == vars(plan.after)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["mine.py", "plan.json"]
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", "mine.py:net", "mine.py:net", "--shape", "1,6", "--modes", "eager", "--repeats", "1",
              "--batch-size", "3", "--json"])  # fmt: skip
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert told["batch_size"] == 3
    assert told["parameters"] == [12 * 7 + 3 * 13] * 2


def test_examples_are_repeated_to_a_batch_size() -> None:
    x = torch.arange(4.0).reshape(2, 2)
    assert torch.equal(sized({"x": x, "n": torch.tensor(7.0)}, 5)["x"], x[[0, 1, 0, 1, 0]])
    assert torch.equal(sized(x, 1), x[:1])


def test_a_duration_moves_nothing_that_is_random_and_is_none_where_nobody_knows() -> None:
    model, dirichlet, recovery = net(), METHODS["dirichlet"](), prunus.FinetuneConfig(epochs=3)
    model.insert(1, nn.Dropout(0.5))
    model.train()
    torch.manual_seed(1)
    first = torch.rand(1)
    torch.manual_seed(1)
    told = duration_before(model, data(), dirichlet, 64, recovery, 1)
    assert told is not None
    assert (told.learning, told.recovery, told.steps) == (200, 6, 206)
    shared = duration_before(model, data(), dirichlet, 64, recovery, 1, processes=2)
    assert shared is not None
    assert (shared.learning, shared.recovery) == (100, 3)
    assert torch.equal(torch.rand(1), first)
    assert duration_before(model, data(), METHODS["l1"](), 64, None, 1) is None


def test_times_are_spoken_as_people_do() -> None:
    assert [spoken(s) for s in (0.3, 90, 600, 7300)] == ["0.3 seconds", "90 seconds", "10 minutes", "2 hours"]
