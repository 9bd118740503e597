"""The command line as a user meets it: every command on a small model, and refusals with status 2."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import prunus
from prunus.cli.app import COMMANDS, application, main
from prunus.cli.former import FORMER, translated
from prunus.data import ArrayDataset
from prunus.errors import ConfigError, PruneError
from prunus.methods.criteria import L1
from prunus.pipeline.early import check_early
from prunus.pipeline.inputs import load_weights
from prunus.pipeline.texts import target_of
from prunus.plan.request import requested

MODEL = """
import torch
from torch import nn
from prunus.data.datasets import ArrayDataset, DataSource

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
    )

def branch():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x
    return Branch(), torch.randn(2, 3)

def data():
    images, labels = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4
    part = ArrayDataset(images, labels)
    return DataSource("toy", part, part, part, 4)

def bright():
    images, labels = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4
    images[:, :, 0, 0] = 99.0  # the grid of eight bits has to be coarse
    part = ArrayDataset(images, labels)
    return DataSource("bright", part, part, part, 4)
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(MODEL)
    return str(path)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def test_analyze_lists_groups(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("analyze", f"{script}:net", "--shape", "2,1,8,8") == 0
    shown = capsys.readouterr().out
    assert "prunable" in shown
    assert "locked" in shown


def test_compress_evaluate_export(script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["--data", f"{script}:data", "--target", "macs<=50%", "--recover", "epochs=1", "--export", "none"]
    arguments += ["--out", str(out)]
    assert run("compress", f"{script}:net", *arguments) == 0
    assert "MACs per example" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["after"]["macs"] <= 0.5 * summary["before"]["macs"]
    artifact = str(out / "artifact")
    for place in (artifact, str(out)):
        assert run("evaluate", place, "--data", f"{script}:data") == 0
        assert f"accuracy {summary['accuracy']['test']:.2f} %" in capsys.readouterr().out
    pytest.importorskip("onnxruntime")
    assert run("export", artifact, str(tmp_path / "m.onnx")) == 0
    assert run("export", artifact, str(tmp_path / "m.pt2")) == 0
    assert (tmp_path / "m.onnx").exists()
    assert run("export", artifact, str(tmp_path / "m.txt")) == 2
    assert "name it .onnx or .pt2" in capsys.readouterr().err
    assert run("export", artifact, str(tmp_path / "m.txt"), "--as", "pt2") == 0
    assert run("export", artifact, str(tmp_path / "m"), "--as", "int8") == 2
    assert "found on examples" in capsys.readouterr().err
    assert run("export", artifact, str(tmp_path / "m8.onnx"), "--as", "int8", "--data", f"{script}:data") == 0
    assert "held-out examples" in " ".join(capsys.readouterr().out.split())


def test_compress_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(MODEL.replace("8, 3), nn.BatchNorm2d(8)", "8, 3)").replace("32, 4", "32, 10"))
    out = tmp_path / "run"
    arguments = ["--data", "digits", "--method", "taylor", "--target", "0.5", "--labels", "none", "--export", "none"]
    arguments += ["--recover", "epochs=1", "--recover", "batch_size=500", "--run", "modes=eager", "--out", str(out)]
    assert run("compress", f"{tmp_path / 'mine.py'}:net", *arguments) == 0
    shown = capsys.readouterr().out
    assert "test agreement" in shown
    assert "test divergence" in shown
    assert "accuracy" not in shown
    summary = json.loads((out / "summary.json").read_text())
    assert "accuracy" not in summary
    assert summary["agreement"]["dense_test"] == 100.0
    assert summary["loss"]["dense_test"] == 0.0
    assert 0 < summary["loss"]["recovered"] < summary["loss"]["one_shot"]
    assert "learned without labels" in (out / "plan.json").read_text()


def test_inputs_on_grids_stay_on_them_in_evaluate_and_are_not_exported_away(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["--data", f"{script}:bright", "--method", "dpp", "--target", "weight 50%", "--run", "modes=eager"]
    for setting in ("epochs=0", "tune_epochs=1", "bits=8", "activation_bits=8"):
        arguments += ["--set", setting]
    assert run("compress", f"{script}:net", *arguments, "--export", "none", "--out", str(out)) == 0
    summary = json.loads((out / "summary.json").read_text())
    artifact = str(out / "artifact")
    capsys.readouterr()
    assert run("evaluate", artifact, "--data", f"{script}:bright") == 0
    told = f"accuracy {summary['accuracy']['test']:.2f} %, loss {summary['loss']['test']:.4f}"
    assert told in " ".join(capsys.readouterr().out.split())
    for name in ("model.pt2", "model.onnx"):
        assert run("export", artifact, str(tmp_path / name)) == 2
        assert "lie on grids" in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / name).exists()


def test_weights_are_loaded_and_refused(script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.pt"
    namespace: dict[str, object] = {}
    exec(MODEL, namespace)
    torch.save({"state_dict": {f"module.{k}": v for k, v in namespace["net"]().state_dict().items()}}, path)  # type: ignore[operator]
    assert run("evaluate", f"{script}:net", "--data", f"{script}:data", "--weights", str(path)) == 0
    path.write_bytes(b"broken")
    assert run("evaluate", f"{script}:net", "--data", f"{script}:data", "--weights", str(path)) == 2
    assert "--weights" in capsys.readouterr().err


def test_names_of_weights_lose_module_only_where_the_model_has_none_of_that_name(tmp_path: Path) -> None:
    plain, parallel = nn.Sequential(nn.Linear(2, 2)), nn.ModuleDict({"module": nn.Sequential(nn.Linear(2, 2))})
    torch.save(parallel.state_dict(), tmp_path / "w.pt")
    for model in (plain, copy.deepcopy(parallel)):
        load_weights(model, tmp_path / "w.pt")
        for found, wanted in zip(model.parameters(), parallel.parameters(), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapped", [None, "state_dict", "model_state_dict", "model"])
def test_names_of_wrappers_are_taken_off(tmp_path: Path, prefix: str, wrapped: str | None) -> None:
    trained, fresh = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 3))
    state = {f"{prefix}{name}": tensor for name, tensor in trained.state_dict().items()}
    torch.save(state if wrapped is None else {wrapped: state, "epoch": 3}, tmp_path / "w.pt")
    load_weights(fresh, tmp_path / "w.pt")
    for found, wanted in zip(fresh.parameters(), trained.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_weights_that_do_not_fit_are_listed_and_leave_the_model_alone(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = copy.deepcopy(net.state_dict())
    state = {"0.weight": torch.zeros(4, 2), "0.bias": torch.zeros(3), "1.weight": torch.zeros(2, 3)}
    torch.save({**state, "head.bias": torch.zeros(9)}, tmp_path / "w.pt")
    with pytest.raises(ConfigError) as refused:
        load_weights(net, tmp_path / "w.pt")
    assert refused.value.what == (
        "2 of 4 tensors fit; of another shape: 0.weight is [4, 2], the model's [3, 2]; not in the file: 1.bias; "
        "not in the model: head.bias"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_what_no_plan_can_meet_is_refused_before_the_dense_network_is_judged() -> None:
    class Counted(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counted.calls += len(x)
            return super().forward(x)

    part = ArrayDataset(torch.randn(500, 6), torch.arange(500) % 3)
    net = nn.Sequential(Counted(6, 8), nn.ReLU(), nn.Linear(8, 3))
    for target, named in (("macs<=0.1%", "cannot be met"), (1.5, "no fraction"), ({"9": 3}, "no prunable group"),
                          ("macs<=8", "write macs<=8% for a share")):  # fmt: skip
        with pytest.raises(PruneError, match=named):
            prunus.compress(net, (part, part), method="l1", target=target, progress=False)
    with pytest.raises(PruneError, match="zzz"):
        prunus.compress(net, (part, part), method="l1", target=0.5, ignored_layers=["zzz"], progress=False)
    assert Counted.calls < 100
    for target, allow in (("memory<=1MB", ()), ("macs<=5%", ("blocks",))):  # known later than at a first look
        request = requested(target, None, method="l1", takes=L1.targets, optional=False)
        check_early(net, torch.randn(2, 6), request, allow, ())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["analyze", "{}:branch"], "Branch"),
        (["analyze", "{}:net"], "example inputs"),
        (["analyze", "{}:net", "--shape", "a,b"], "--shape"),
        (["analyze", "{}:nothing", "--shape", "1,1,8,8"], "nothing"),
        (["compress", "{}:net", "--data", "{}:data", "--target", "macs<=0.001%"], "budget"),
        (["compress", "{}:net", "--data", "{}:data", "--target", "macs<=50%", "--ignore", "zzz"], "zzz"),
        (["compress", "{}:net", "--data", "{}:data", "--method", "rbp", "--set", "bta=2"], "use beta"),
        (["compress", "{}:net", "--data", "mnist:/nowhere", "--target", "macs<=50%"], "/nowhere"),
        (["compress", "{}:net", "--data", "{}:data", "--target", "half"], "half"),
        (["compress", "{}:net", "--data", "{}:data", "--target", "0=9"], "cannot keep 9 of 8"),
        (["compress", "{}:net", "--data", "{}:data", "--target", "0.5", "--recover", "epochz=3"], "use epochs"),
        (["compress", "{}:net", "--data", "{}:data", "--target", "0.5", "--allocate", "scope=all"], "one of"),
        (["compress", "{}:net", "--data", "{}:data", "--target", "0.5", "--allow", "heads"], "head_dims"),
        (["compress", "{}:net", "--data", "{}:data", "--target", "0.5", "--export", "tflite"], "pt2"),
        (["compress", "{}:net", "--data", "{}:data", "--target", "0.5", "--run", "say=loud"], "has no 'say'"),
        (["compress", "{}:net", "--data", "{}:data", "--target", "0=8, 0=9"], "named twice"),
        (["compress", "{}:net", "--data", "{}:data", "--target", "0=\u00b2"], "0"),
        (["compress", "{}:net", "--data", "{}:data", "--target", "0.5", "--export", "onnx,no-onnx"], "left out"),
        (["compress", "{}:net", "--data", "{}:data", "--recover", "none", "--recover", "foo=1"], "foo"),
        (["compress", "{}:net", "--data", "{}:data", "--target", "0.5", "--labels", "no"], "--labels none"),
        (["export", "{}:net", "x.onnx", "--shape", "1,8", "--as", "auto"], "use one of onnx"),
        (["analyze", "{}:net", "--shape", "1,8", "--data", "{}:data"], "give one of them"),
        (["demo", "--data", "{}:data"], "28 x 28"),
        (["demo", "--target", "mac<=50%"], "mac<=50%"),
        (["compress", "{}:net", "--data", "{}:data", "--target", "0.5", "--resume", "--force"], "give one of them"),
    ],
)
def test_refusals_end_with_status_2(
    script: str, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*[a.format(script) for a in arguments]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert named in shown
    assert "fix:" in shown


def test_version_and_help_need_no_torch() -> None:
    code = "import sys; from prunus.cli import main\ntry: main([{!r}])\nfinally: print('torch' in sys.modules)"
    for option, shown in (("--version", f"prunus {prunus.__version__}"), ("--help", "compress")):
        found = subprocess.run([sys.executable, "-c", code.format(option)], capture_output=True, text=True, check=True)
        assert shown in found.stdout
        assert found.stdout.splitlines()[-1] == "False"


def test_the_help_of_every_command_is_that_of_its_function() -> None:
    for name, (place, help) in COMMANDS.items():
        module, _, function = place.partition(":")
        described = getattr(importlib.import_module(f"prunus.cli.{module}"), function).__doc__
        assert described.split("\n")[0] == help
        shown = CliRunner().invoke(application(name), [name, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0
        assert "--json" in shown.output
        assert "--quiet" in shown.output


def test_json_is_all_there_is_on_the_standard_output(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("analyze", f"{script}:net", "--shape", "2,1,8,8", "--json") == 0
    shown = capsys.readouterr()
    assert [(g["name"], g["prunable"]) for g in json.loads(shown.out)["groups"]] == [("0", True), ("5", False)]
    assert "prunable" in shown.err
    assert run("evaluate", f"{script}:net", "--data", f"{script}:data", "--json", "--quiet") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["num_examples"] == 64
    assert shown.err == ""
    assert run("analyze", f"{script}:net", "--json") == 2
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"]["where"] == "example inputs"
    assert "fix:" in shown.err


def test_quiet_says_nothing(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("analyze", f"{script}:net", "--shape", "2,1,8,8", "-q") == 0
    assert capsys.readouterr() == ("", "")


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def test_without_onnx_the_work_is_done_and_said(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "onnxruntime")
    arguments = [f"{script}:net", "--data", f"{script}:data", "--target", "macs<=50%", "--recover", "none"]
    assert run("compress", *arguments, "--out", str(tmp_path / "a")) == 0
    assert "pip install 'prunus[onnx]'" in capsys.readouterr().out
    assert (tmp_path / "a" / "summary.json").exists()
    assert run("compress", *arguments, "--out", str(tmp_path / "b"), "--export", "onnx") == 2
    assert "pip install 'prunus[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_stages_on_the_command_line(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    arguments = [
        f"{script}:net",
        "--data",
        f"{script}:data",
        "--method",
        "rbp",
        "--recover",
        "none",
        "--export",
        "none",
    ]
    arguments += ["--set", "beta=2", "--set", "complexity_per=position"]
    assert run("compress", *arguments, "--out", str(out)) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert "beta=2.0, complexity_per='position'" in summary["settings"]
    assert [s["groups"] for s in summary["stages"]] == [["0"]]
    assert (out / "figures" / "stages.png").read_bytes().startswith(b"\x89PNG")
    without(monkeypatch, "matplotlib", "matplotlib.figure")
    assert run("compress", *arguments, "--out", str(out), "--resume") == 0
    assert "pip install 'prunus[figures]'" in capsys.readouterr().out
    again = json.loads((out / "summary.json").read_text())
    assert again["kept"] == summary["kept"]
    assert again["stages"] == summary["stages"]


def test_options_of_the_release_before_are_translated_and_told() -> None:
    told: list[str] = []

    def now(text: str) -> list[str]:
        told.clear()
        return translated(text.split(), told.append)

    assert " ".join(now("m --data d --budget macs<=50% --seed 3")) == "m --data d --target macs<=50% --seed 3"
    assert told == []
    words = now("m --epochs 5 --lr=0.1 --round-to 4 --head-dims --inexact --allow own_class --compiled --no-onnx")
    pairs = list(zip(words[1::2], words[2::2], strict=True))
    assert ("--recover", "epochs=5") in pairs
    assert ("--recover", "lr=0.1") in pairs
    assert ("--allocate", "round_to=4") in pairs
    assert ("--allow", "head_dims,inexact,own_class") in pairs
    assert ("--export", "no-onnx") in pairs
    assert ("--run", "modes=eager,compiled") in pairs
    assert told[0] == "--epochs 5 goes with the next release: write --recover epochs=5"
    assert len(told) == 7
    none = "m --recover none --run batch_size=8 --recover batch_size=8"
    assert " ".join(now("m --epochs 0 --batch-size 8")) == none
    inside = "m --method dpp --set epochs=5 --set bits=8 --run batch_size=8 --target 2:4"
    assert " ".join(now("m --method dpp --epochs 5 --bits 8 --batch-size 8 --pattern 2:4")) == inside
    with pytest.raises(ConfigError, match="said twice"):
        now("m --budget macs<=50% --pruning-ratio 0.5")
    assert now("m --pruning-ratio") == ["m", "--target", ""]
    assert translated(["m", "--target", "", "--method", "l1"], told.append) == ["m", "--target", "", "--method", "l1"]


def test_targets_are_told_apart_by_their_form() -> None:
    assert [target_of(text) for text in ("0.5", "macs<=50%", "weight 10%", "2:4", None)] == [
        0.5, "macs<=50%", "weight 10%", "2:4", None,
    ]  # fmt: skip
    assert target_of("conv1=8, fc=100") == {"conv1": 8, "fc": 100}
    assert target_of("conv1=weight 10%, fc=2:4") == {"conv1": "weight 10%", "fc": "2:4"}


def test_old_options_still_do_the_work(script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    arguments = ["--data", f"{script}:data", "--pruning-ratio", "0.25", "--method", "l1", "--epochs", "0", "--no-onnx"]
    assert run("compress", f"{script}:net", *arguments, "--scope", "uniform", "--out", str(out)) == 0
    told = capsys.readouterr().err
    assert "write --target 0.25" in told
    assert "write --allocate scope=uniform" in told
    assert json.loads((out / "summary.json").read_text())["asked"] == "pruning_ratio=0.25, uniform"


def test_the_help_fits_a_terminal(
    script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run("compress", "--help") == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) < 60
    for word in ("--target", "dirichlet", "digits", "pretrained", "FILE.py:Class"):
        assert word in shown
    for word in FORMER:
        assert f"{word} " not in shown or word == "--resume"


def test_an_old_name_of_a_setting_is_told_though_python_hides_such_warnings() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("ignore")
        with pytest.raises(SystemExit):
            main(["compress", "nowhere.py:net", "--data", "digits", "--method", "rbp", "--set", "kappa=1"])
    assert any("beta" in str(w.message) and "next release" in str(w.message) for w in seen)
