"""Experiment trackers by accelerate's names: what they are told, what is refused, and that none can end a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import accelerate.tracking
import pytest
import torch
from torch import nn

import prunus
from prunus.data import ArrayDataset, DataSource
from prunus.errors import ConfigError, MissingDependencyError
from prunus.runtime.curves import heard_by, point


class Listed(accelerate.tracking.GeneralTracker):
    """Writes down what it is told; its third number may break it."""

    name = "listed"
    requires_logging_directory = True
    breaks: ClassVar[bool] = False
    told: ClassVar[list[Any]] = []

    def __init__(self, run_name: str, logging_dir: str) -> None:
        super().__init__()
        self.folder, self.logged = logging_dir, 0

    @property
    def tracker(self) -> list[Any]:
        return self.told

    def start(self) -> None:
        self.told.append(("start", self.folder))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(("settings", values))

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.logged += 1
        if self.breaks and self.logged == 3:
            raise ConnectionError("the service is gone")
        self.told.append((step, values))

    def finish(self) -> None:
        self.told.append(("finish",))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> type[Listed]:
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "listed", Listed)
    monkeypatch.setattr(Listed, "told", [])
    return Listed


def compressed(out: Path, said: list[str], **run: Any) -> prunus.Compression:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    parts = [ArrayDataset(torch.randn(n, 6), torch.arange(n) % 3) for n in (64, 32, 32)]
    how = prunus.RunSettings(modes=(), say=said.append, features=False, **run)
    return prunus.compress(
        net, DataSource("random", *parts, num_classes=3), method="dirichlet", target=0.5, out=out, progress=False,
        recovery=prunus.FinetuneConfig(epochs=2, batch_size=16, patience=2), run=how,
    )  # fmt: skip


def test_a_tracker_is_told_settings_curves_and_what_networks_were_judged_by(listed: Any, tmp_path: Path) -> None:
    done = compressed(tmp_path / "run", said := [], track=("listed",))
    assert listed.told[0] == ("start", str(tmp_path / "run" / "tracking"))
    assert listed.told[1][1]["method"].startswith("Dirichlet")
    assert listed.told[-1] == ("finish",)
    points = listed.told[2:-1]
    assert [step for step, _ in points] == list(range(len(points)))
    curves: dict[str, list[tuple[int, float]]] = {}
    for _, values in points:
        (name, value), (_, at) = values.items()
        curves.setdefault(name, []).append((at, value))
    history = done.result.findings.history
    assert curves["learning/loss"] == list(enumerate(history, 1))
    assert [at for at, _ in curves["recovery/validation_loss"]] == [1, 2]
    assert {name: found[0][1] for name, found in curves.items() if name.startswith("accuracy/")} == {
        f"accuracy/{stage}": score for stage, score in done.scores.items()
    }
    events = [json.loads(line) for line in (tmp_path / "run" / "steps" / "events.jsonl").read_text().splitlines()]
    written = [(e["curve"], e["value"]) for e in events if e["event"] == "point"]
    assert written == [next(iter(values.items())) for _, values in points]
    assert any("training steps, about" in line for line in said)


def test_a_tracker_that_fails_is_named_and_the_run_goes_on(
    listed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Listed, "breaks", True)
    done = compressed(tmp_path / "run", said := [], track=("listed",))
    assert "no more is tracked by listed: ConnectionError: the service is gone" in said
    assert len(listed.told) == 4  # start, settings and two numbers
    assert done.directory is not None
    other = compressed(tmp_path / "untracked", [])
    assert all(torch.equal(a, b) for a, b in zip(done.model.parameters(), other.model.parameters(), strict=True))


@pytest.mark.parametrize(("name", "error", "told"), [
    ("tensorbord", ConfigError, "use tensorboard"),
    ("comet_ml", MissingDependencyError, "pip install comet_ml"),
])  # fmt: skip
def test_unknown_and_missing_trackers_are_refused_before_the_work(
    name: str, error: type[Exception], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    with pytest.raises(error, match=told):
        compressed(tmp_path / "run", said := [], track=(name,))
    assert not said
    assert not (tmp_path / "run").exists()


def test_a_tracker_with_files_wants_a_folder(listed: Any) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    part = ArrayDataset(torch.randn(8, 6), torch.arange(8) % 3)
    with pytest.raises(ConfigError, match="give out="):
        prunus.compress(net, (part, part), method="l1", target=0.5, run=prunus.RunSettings(track=("listed",)))


def test_numbers_reach_those_that_listen_and_nobody_else() -> None:
    outer: list[Any] = []
    inner: list[Any] = []
    point("before", 0.0, 0)
    with heard_by(lambda *told: outer.append(told)):
        with heard_by(lambda *told: inner.append(told)):
            point("loss", 1.0, 1)
        point("loss", 2.0, 2)
    point("after", 0.0, 0)
    assert outer == [("loss", 1.0, 1), ("loss", 2.0, 2)]
    assert inner == [("loss", 1.0, 1)]
