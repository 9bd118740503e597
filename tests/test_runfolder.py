"""The folder of a run: what can't be written is said before the work; one result at any time, none beside another's."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.data.datasets import ArrayDataset, DataSource
from prunus.errors import ArtifactError, ConfigError, DataError, TraceError
from prunus.formats.artifact import artifact_files, load, save
from prunus.formats.run import check_run_folder, commit, commit_or_rescue
from prunus.methods.dpp import DynamicProbabilisticPruning
from prunus.pipeline.compress import compress
from prunus.pipeline.prune import prune
from prunus.pipeline.settings import RunSettings
from prunus.recovery.config import FinetuneConfig

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, *xs: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(xs[0])))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def source(loss_fn: Any = nn.functional.cross_entropy) -> DataSource:
    part = ArrayDataset(torch.randn(16, 6, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3)
    return DataSource("toy", part, part, part, 3, loss_fn=loss_fn)


def files(mark: str) -> dict[str, bytes]:
    """An artifact in form, whose content is a mark."""
    content = {"weights.safetensors": mark.encode(), "plan.json": mark.encode()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    return {**content, "manifest.json": json.dumps({"sha256": digests}).encode()}


def shown(out: Path) -> dict[str, str]:
    """What stands in the folder, beside the artifact, by name; links are followed."""
    places = [p for p in out.rglob("*") if "artifact" not in p.relative_to(out).parts[:1] and not p.is_dir()]
    places += [q for p in out.iterdir() if p.is_symlink() and p.is_dir() for q in p.iterdir()]
    return {str(p.relative_to(out)): p.read_text() for p in places if p.is_file()}


def test_a_second_run_leaves_nothing_of_the_first_and_all_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "artifact.old").mkdir()
    (tmp_path / "artifact.old" / "backup").write_text("mine")
    first = commit(tmp_path, files("1"), {"n": 1})
    first.add("model.onnx", b"onnx 1")
    first.add("figures", {"a.png": b"picture 1"})
    mine = {"notes.txt": "mine", "artifact.old/backup": "mine"}
    one = {"plan.json": "1", "summary.json": '{\n  "n": 1\n}', "model.onnx": "onnx 1", "figures/a.png": "picture 1"}
    assert shown(tmp_path) == {**mine, **one}
    commit(tmp_path, files("2"), {"n": 2})
    assert shown(tmp_path) == {**mine, "plan.json": "2", "summary.json": '{\n  "n": 2\n}'}
    assert not any(p.name.startswith(".") for p in tmp_path.rglob("*"))


def test_what_belongs_to_a_replaced_result_is_not_put_beside_the_new_one(tmp_path: Path) -> None:
    said: list[str] = []
    first = commit(tmp_path, files("1"), {"n": 1}, said.append)
    commit(tmp_path, files("2"), {"n": 2})
    first.add("model.onnx", b"onnx 1")
    first.add_summary({"n": 1, "speed": 2})
    assert shown(tmp_path) == {"plan.json": "2", "summary.json": '{\n  "n": 2\n}'}
    assert len(said) == 2
    assert "another run has replaced the result" in said[0]


def test_a_copied_run_folder_is_a_run_folder(tmp_path: Path) -> None:
    """Copies have files where there were links."""
    out = tmp_path / "out"
    commit(tmp_path / "run", files("1"), {}).add("figures", {"a.png": b"picture 1"})
    shutil.copytree(tmp_path / "run", out)
    assert not (out / "plan.json").is_symlink()
    check_run_folder(out)
    commit(out, files("2"), {})
    assert shown(out) == {"plan.json": "2", "summary.json": "{}"}


def test_without_links_there_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(sys.modules["prunus.formats.run"].os, "symlink", refuse)
    commit(tmp_path, files("1"), {}).add("model.onnx", b"onnx 1")
    assert shown(tmp_path) == {"plan.json": "1", "summary.json": "{}", "model.onnx": "onnx 1"}
    commit(tmp_path, files("2"), {})
    assert shown(tmp_path) == {"plan.json": "2", "summary.json": "{}"}


def test_pictures_of_the_user_stay_and_are_named(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "mine.png").write_text("mine")
    said: list[str] = []
    commit(tmp_path, files("1"), {}, said.append).add("figures", {"a.png": b"picture 1"})
    assert (tmp_path / "figures" / "mine.png").read_text() == "mine"
    assert (tmp_path / "artifact" / "figures" / "a.png").read_bytes() == b"picture 1"
    assert any("is not of this run and stays" in line for line in said)


@pytest.mark.parametrize(
    "name", ["out", "out/artifact", "out/artifact/thesis.txt", "out/plan.json", "out/summary.json"]
)
@pytest.mark.parametrize("masks", [False, True])
def test_what_is_in_the_way_is_said_before_the_work(tmp_path: Path, name: str, masks: bool) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")

    def loss_fn(*_: object, **__: object) -> Tensor:
        raise AssertionError("the work has begun")

    data, out = source(loss_fn), tmp_path / "out"
    with pytest.raises(ArtifactError):  # noqa: PT012
        if masks:
            compress(network(), data, method=DynamicProbabilisticPruning(pattern="2:4"), out=out)
        else:
            compress(network(), data, method="taylor", target="macs<=60%", out=out)
    assert (tmp_path / name).read_text() == "mine"


def compressed(out: Path, **options: Any) -> Any:
    force, say = options.pop("force", False), options.pop("say", print)
    run = RunSettings(batch_size=8, modes=("eager",), say=say, force=force)
    settings = {"method": "l1", "target": 0.5, "run": run, "progress": False}
    return compress(options.pop("model", network()), source(), out=out, **{**settings, **options})


def test_a_recovery_that_fails_leaves_the_pruned_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)
        raise DataError("epoch 3, step 7", "NaN or infinity in the loss", "lower the learning rate")

    monkeypatch.setattr(sys.modules["prunus.pipeline.recovering"], "finetune", broken)
    told: list[str] = []
    with pytest.raises(DataError, match="epoch 3"):
        compressed(tmp_path / "out", recovery=FinetuneConfig(epochs=5), say=told.append)
    monkeypatch.undo()
    smaller = load(tmp_path / "out" / "artifact")
    wanted = compressed(tmp_path / "other", recovery=None)
    assert all(torch.equal(t, wanted.model.state_dict()[n]) for n, t in smaller.state_dict().items())
    assert any("recovery failed" in line for line in told)
    assert "recovered" not in json.loads((tmp_path / "out" / "summary.json").read_text())["accuracy"]


def test_ctrl_c_while_it_is_timed_leaves_the_whole_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["prunus.pipeline.compress"], "compare", interrupted)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        compressed(tmp_path, say=said.append, recovery=FinetuneConfig(epochs=1, batch_size=8))
    assert any("KeyboardInterrupt: the result is saved whole" in line for line in said)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"recovered", "test"} <= set(summary["accuracy"])
    model = load(tmp_path / "artifact")
    assert torch.allclose(model(X), load(tmp_path / "artifact", network)(X), atol=1e-6)


WHY = "no free batch size"


@pytest.mark.parametrize("error", [TraceError("model Net", WHY, "none"), RuntimeError(WHY)])
def test_a_model_that_cannot_be_captured_loses_its_program_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refused(*_: object, **__: object) -> bytes:
        raise error

    monkeypatch.setattr(sys.modules["prunus.formats.artifact"], "program_files", refused)
    result = prune(Net(), X, method="l1", target=0.5)
    with pytest.warns(UserWarning, match="no free batch size"):
        save(tmp_path / "a", result.model, result.plan)
    assert torch.equal(load(tmp_path / "a", Net)(X), result.model.eval()(X))
    with pytest.raises(ArtifactError, match=r"without a program: .*no free batch size(?s:.*)pass the factory"):
        load(tmp_path / "a")


def test_a_result_that_cannot_be_written_after_all_is_put_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["prunus.formats.run"].tempfile, "mkdtemp", lambda **_: str(tmp_path / "rescued"))
    (tmp_path / "out").write_text("a file came in the way meanwhile")
    with pytest.raises(ArtifactError, match="rescued") as caught:
        commit_or_rescue(tmp_path / "out", files("1"), {})
    assert "saved in" in caught.value.what
    assert (tmp_path / "rescued" / "artifact" / "plan.json").read_text() == "1"


def test_nowhere_to_put_it_is_the_first_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["prunus.formats.run"].tempfile, "tempdir", str(tmp_path / "none"))
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ArtifactError, match="cannot be written") as caught:
        commit_or_rescue(tmp_path / "out", files("1"), {})
    assert "rescued" not in str(caught.value)


@pytest.mark.parametrize("masks", [False, True])
def test_a_program_that_there_will_not_be_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masks: bool
) -> None:
    def refused(*_: object, **__: object) -> bytes:
        raise TraceError("model Net", WHY, "none")

    def loss_fn(outputs: Tensor, targets: Tensor, **options: Any) -> Tensor:
        if outputs.requires_grad:
            raise ZeroDivisionError  # the work has begun
        return F.cross_entropy(outputs, targets, **options)

    monkeypatch.setattr(sys.modules["prunus.formats.artifact"], "program_files", refused)
    said: list[str] = []
    out, data = tmp_path / "out", source(loss_fn)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        if masks:
            compress(network(), data, method="dpp", target="2:3", out=out, run=RunSettings(say=said.append))
        else:
            compress(network(), data, method="taylor", target="macs<=60%", out=out, run=RunSettings(say=said.append))
    assert any("no program" in line and WHY in line for line in said)


def test_stages_of_another_method_go_with_its_result(tmp_path: Path) -> None:
    compressed(tmp_path, method=prunus.RecursiveBayesianPruning(epochs=1, tune_epochs=0), target=None)
    assert (tmp_path / "stages.pt").exists()
    compressed(tmp_path, force=True)
    assert not (tmp_path / "stages.pt").exists()
    (tmp_path / "stages.pt").write_text("mine")
    compressed(tmp_path)
    assert (tmp_path / "stages.pt").read_text() == "mine"


def test_metrics_are_json(tmp_path: Path) -> None:
    result = prune(network(), X, method="l1", target=0.5)
    metrics = {"nan": float("nan"), "inf": float("-inf"), "tensor": torch.tensor(2.0), "list": [torch.tensor([1, 2])]}
    made = artifact_files(result.model, result.plan, metrics=metrics, example_inputs=X)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(made["manifest.json"], parse_constant=refuse)["metrics"]
    assert found == {"nan": None, "inf": None, "tensor": 2.0, "list": [[1, 2]]}
    with pytest.raises(ConfigError, match="object has no place in JSON"):
        save(tmp_path / "a", result.model, result.plan, metrics={"what": object()}, example_inputs=X)
    assert not (tmp_path / "a").exists()
