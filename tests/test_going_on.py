"""Runs that go on: stopped anywhere and resumed, the result is that of the unbroken run, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import prunus
from prunus.cli.app import main
from prunus.data.datasets import ArrayDataset, DataSource
from prunus.errors import ArtifactError
from prunus.files.steps import Steps
from prunus.pipeline.compress import Compression, compress
from prunus.pipeline.settings import RunSettings
from prunus.recovery.config import FinetuneConfig
from prunus.runtime import stopping
from prunus.runtime.randomstate import random_state, restore_random_state
from prunus.runtime.training import Training

RECOVERY = FinetuneConfig(epochs=2, batch_size=32)
WAYS: dict[str, dict[str, Any]] = {
    "dirichlet": {"method": prunus.DirichletPruning(min_steps=16, joint=False), "recovery": RECOVERY},
    "taylor": {"method": "taylor", "recovery": FinetuneConfig(epochs=0.5, batch_size=16, optimizer="adamw")},
    "rbp": {"method": prunus.RecursiveBayesianPruning(epochs=1, tune_epochs=1, min_steps=1), "target": None},
    "dpp": {
        "method": prunus.DynamicProbabilisticPruning(epochs=2, tune_epochs=1, activation_bits=8, bits=8),
        "target": "weight 50%",
    },
}
SCORED = {"method": WAYS["dirichlet"]["method"]}
MOMENTS = [("dirichlet", 0.4), ("dirichlet", 1.0), ("taylor", 0.3), ("rbp", 0.6), ("dpp", 0.5)]
"""Ways to prune, and the share of the training steps after which the power goes."""


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 8), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(8, 3)).eval()


def examples(count: int, seed: int = 1) -> ArrayDataset:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return ArrayDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def source() -> DataSource:
    return DataSource("toy", examples(64), examples(48, 2), examples(16, 3), 3)


class Noisy(Dataset[Any]):
    """Examples with noise from all three global generators."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = torch.full((6,), index / 48) + 0.1 * torch.randn(6)
        return x + random.random() + float(np.random.rand()), index % 3


def loaders() -> DataSource:
    """Orders and noise drawn by generators of the process, and by one of the loader's own."""
    train = DataLoader(Noisy(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(5))
    return DataSource("loaders", train, examples(48, 2), None, 3, sample=torch.zeros(2, 6))


def run(
    out: Path | None,
    data: Callable[[], DataSource] = source,
    *,
    resume: bool = False,
    force: bool = False,
    save_every: float = 60.0,
    **options: Any,
) -> tuple[Compression, list[str]]:
    said: list[str] = []
    how = RunSettings(16, resume, force, save_every, modes=(), say=said.append, features=False)
    random.seed(0)
    np.random.seed(0)
    done = compress(network(), data(), out=out, run=how, progress=False, **{"target": "macs<=60%", **options})
    return done, said


@contextmanager
def at_step(number: int, happens: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
    """Count the training steps, and let something happen before one of them."""
    count, step = [0], Training.step

    def counted(self: Training, *args: Any, **options: Any) -> Tensor:
        count[0] += 1
        if count[0] == number:
            happens()
        return step(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "step", counted)
        yield count


def power_cut() -> None:
    raise KeyboardInterrupt


def same(one: Compression, other: Compression) -> bool:
    tensors = [done.model.state_dict() for done in (one, other)]
    alike = tensors[0].keys() == tensors[1].keys() and all(torch.equal(t, tensors[1][n]) for n, t in tensors[0].items())
    return alike and one.result.plan == other.result.plan and one.scores == other.scores


@cache
def unbroken(way: str) -> tuple[Compression, int]:
    with at_step(0) as steps:
        done, _ = run(None, **WAYS[way])
    return done, steps[0]


@pytest.mark.parametrize(("way", "share"), MOMENTS)
def test_stopped_anywhere_and_resumed_is_unbroken(way: str, share: float, tmp_path: Path) -> None:
    whole, steps = unbroken(way)
    number = round(share * steps)
    with at_step(number, power_cut), pytest.raises(KeyboardInterrupt):
        run(tmp_path, save_every=0, **WAYS[way])
    assert not (tmp_path / "artifact").exists()
    with at_step(0) as rest:
        again, _ = run(tmp_path, resume=True, **WAYS[way])
    assert same(whole, again)
    assert rest[0] == steps - number + 1


def test_an_order_that_generators_draw_goes_on(tmp_path: Path) -> None:
    with at_step(0) as steps:
        whole, _ = run(None, loaders, **WAYS["dirichlet"])
    for number in (steps[0] // 2, steps[0] - 1):  # of the learning, and when that was resumed of the recovery
        with (
            at_step(number - (number > steps[0] // 2) * (steps[0] // 2 - 1), power_cut),
            pytest.raises(KeyboardInterrupt),
        ):
            run(tmp_path, loaders, save_every=0, resume=True, **WAYS["dirichlet"])
    assert same(whole, run(tmp_path, loaders, resume=True, **WAYS["dirichlet"])[0])


def test_another_target_takes_scores_and_losses_that_were_measured(tmp_path: Path) -> None:
    whole, _ = run(None, target="macs<=40%", **SCORED)
    run(tmp_path, **SCORED)
    with pytest.raises(ArtifactError, match=r"another run \(target: 'macs<=60%' there, 'macs<=40%' here\)"):
        run(tmp_path, target="macs<=40%", **SCORED)
    with at_step(0) as steps:
        other, said = run(tmp_path, target="macs<=40%", resume=True, **SCORED)
    assert steps[0] == 0
    assert [line.partition(":")[0] for line in said if "finished before" in line] == ["dense", "scores", "tables"]
    assert same(whole, other)
    assert other.result.scores.posteriors.keys() == other.result.scores.values.keys()


def test_a_folder_with_another_run_is_left_alone(tmp_path: Path) -> None:
    first, _ = run(tmp_path, method="l1")
    run(tmp_path, method="l1")  # the same again
    with pytest.raises(ArtifactError, match=r"method: L1\(.*\) there, L2\(.*\) here.*\n.*--force"):
        run(tmp_path, method="l2")
    assert prunus.Plan.load(tmp_path / "plan.json") == first.result.plan
    second, _ = run(tmp_path, method="l2", force=True)
    assert prunus.Plan.load(tmp_path / "plan.json") == second.result.plan
    assert json.loads((tmp_path / "steps" / "run.json").read_text())["status"] == "finished"
    prunus.save(tmp_path / "other" / "artifact", first.model, first.result.plan)
    with pytest.raises(ArtifactError, match="not written there what from"):
        run(tmp_path / "other", method="l1")


def test_a_run_that_was_refused_at_once_is_in_nobodys_way(tmp_path: Path) -> None:
    with pytest.raises(prunus.errors.BudgetError):
        run(tmp_path / "runs" / "out", method="l1", target="macs<=0.1%")
    assert not (tmp_path / "runs").exists()
    run(tmp_path / "runs" / "out", method="l1")


def test_foreign_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "thesis.pt").write_text("mine")
    with pytest.raises(ArtifactError, match="no run wrote it"):
        run(tmp_path, method="l1", force=True)
    assert (tmp_path / "steps" / "thesis.pt").read_text() == "mine"


def test_a_damaged_step_is_made_anew(tmp_path: Path) -> None:
    whole, _ = run(tmp_path, **WAYS["taylor"])
    for path in (tmp_path / "steps").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-200])
    again, said = run(tmp_path, resume=True, **WAYS["taylor"])
    assert same(whole, again)
    assert any("is made anew: it cannot be read" in line for line in said)


def test_a_signal_waits_for_the_step_and_saves(tmp_path: Path) -> None:
    handlers = [signal.getsignal(s) for s in stopping.SIGNALS]
    with at_step(5, lambda: os.kill(os.getpid(), signal.SIGTERM)) as steps, pytest.raises(SystemExit) as stopped:
        run(tmp_path, **WAYS["dirichlet"])
    assert steps[0] == 5
    assert stopped.value.code == 143
    assert [signal.getsignal(s) for s in stopping.SIGNALS] == handlers
    (saved,) = (tmp_path / "steps").glob("learning-*.pt")
    assert torch.load(saved, weights_only=True)["step"] == 5 % 4
    whole, all_steps = unbroken("dirichlet")
    with at_step(0) as rest:
        assert same(whole, run(tmp_path, resume=True, **WAYS["dirichlet"])[0])
    assert rest[0] == all_steps - 5
    events = [json.loads(line)["event"] for line in (tmp_path / "steps" / "events.jsonl").read_text().splitlines()]
    assert (events[0], events.count("stopped"), events.count("resumed"), events[-1]) == ("started", 1, 1, "finished")


def test_a_second_signal_does_not_wait() -> None:
    with stopping.stoppable():
        stopping.step_begins()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_command_ends_with_the_status_of_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    words = ["compress", "test_going_on:network", "--data", "test_going_on:source", "--method", "taylor"]
    words += ["--target", "0.5", "--recover", "none", "--export", "none", "--out", str(tmp_path / "run")]
    with at_step(1, lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 130
    assert "with resume goes on" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as ended:
        main([*words, "--resume"])
    assert ended.value.code == 0


def test_generators_are_plain_data_and_come_back() -> None:
    drawn: list[list[float]] = []
    np.random.standard_normal()  # leaves a second one waiting
    random.gauss(0, 1)
    state = random_state()
    for _ in range(2):
        restore_random_state(state)
        draws = [float(torch.rand(())), random.random(), random.gauss(0, 1), float(np.random.standard_normal())]
        drawn.append([*draws, float(np.random.rand())])
    assert drawn[0] == drawn[1]


def test_what_went_in_is_the_key(tmp_path: Path) -> None:
    steps = Steps(tmp_path, resume=True)
    steps.finish("scores", {"data": "one"}, {"value": torch.ones(2)})
    assert steps.finished("scores", {"data": "two"}) is None
    found = steps.finished("scores", {"data": "one"})
    assert found is not None
    assert torch.equal(found["value"], torch.ones(2))
    assert Steps(tmp_path).finished("scores", {"data": "one"}) is None
    (tmp_path / "notes.txt").write_text("mine")
    steps.clear()
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
