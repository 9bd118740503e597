"""From model and data to a folder with masks: what is written is what was kept, and refusals leave everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.cli.app import main
from prunus.data.datasets import DataSource
from prunus.errors import ArtifactError, ConfigError
from prunus.formats.artifact import load, load_masks, read_manifest
from prunus.masks.file import LayerMask, packed_masks, read_masks
from prunus.masks.filters import plan_of_filters, sole_writers
from prunus.masks.layers import layer_of
from prunus.masks.maskable import maskable_layers
from prunus.methods.dpp import DynamicProbabilisticPruning as DPP
from prunus.pipeline.compress import compress
from prunus.plan.plan import Plan
from prunus.proof.weightmasks import plan_patterns
from prunus.sparse.layers import condense_
from zoo import ZOO

SCRIPT = """
import torch
from torch import nn
from prunus.data.datasets import ArrayDataset, DataSource

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 4),
    )

def data():
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    part = ArrayDataset(images, torch.arange(64) % 4)
    return DataSource("toy", part, part, part, 4)
"""


def parts() -> tuple[nn.Module, DataSource]:
    space: dict[str, object] = {}
    exec(SCRIPT, space)
    return space["net"]().eval(), space["data"]()  # type: ignore[operator]


def test_the_folder_holds_what_was_kept(tmp_path: Path) -> None:
    model, data = parts()
    method = DPP(pattern="weight 25%", epochs=1, tune_epochs=1, bits=8)
    done = compress(model, data, method=method, out=tmp_path / "run", progress=False)
    masked = done.result.masked
    assert masked is not None
    artifact = tmp_path / "run" / "artifact"
    x = data.example_inputs
    again = load(artifact, lambda: parts()[0])
    assert torch.equal(again(x), done.model(x))
    assert torch.allclose(load(artifact)(x), done.model(x), atol=1e-6)
    masks = load_masks(artifact)
    assert list(masks) == ["3", "6"]
    layouts = {n: m.layout(again, n) for n, m in masks.items()}
    for name, kept in masks.items():
        assert torch.equal(kept.mask, masked.masks[name])
        outside = ~layouts[name].on_weight(kept.mask).expand(layer_of(again, name).weight.shape)
        assert bool((layer_of(again, name).weight[outside] == 0).all())
        assert kept.bits == 8
    condense_(again, layouts, {n: m.mask for n, m in masks.items()})
    assert torch.allclose(again(x), done.model(x), atol=1e-5)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    # 16 neurons, 32 of 128 inputs each: 8 bits a value, 7 an index.
    assert summary["layers"]["6"]["stored_bytes"] == 16 * 32 * (8 + 7) // 8
    assert summary["layers"]["6"]["kept"] <= 16 * 32
    assert "masks.safetensors" in read_manifest(artifact).sha256
    assert "| 6 | weight 25% | 512 of 2,048 |" in (artifact / "README.md").read_text()


def test_the_plan_tells_the_patterns(tmp_path: Path) -> None:
    model, data = parts()
    told: list[str] = []
    method = DPP(pattern="weight 25%", epochs=1, tune_epochs=0, bits=8)
    compress(model, data, method=method, out=tmp_path / "run", progress=False, run=prunus.RunSettings(say=told.append))
    assert "6: weight 25%, 32 of 128 in each of 16 rows, 512 of 2,048 weights stay, values of 8 bits" in " ".join(told)
    plan = Plan.load(tmp_path / "run" / "plan.json")
    assert Plan.from_json(plan.to_json()) == plan
    assert [(p.module, p.rows, p.n, p.k, p.weights) for p in plan.patterns] == [
        ("3", 8, 72, 18, 576), ("6", 16, 128, 32, 2048),
    ]  # fmt: skip
    graph = prunus.trace(model, data.example_inputs)
    other = plan_patterns(graph, model, {"6": "2:4"}, DPP())
    assert "3: weight 25%" in plan.diff(other)
    assert "-> 3: dense" in plan.diff(other)
    assert "-> 6: 2:4, 2 of 4" in plan.diff(other)
    assert plan.diff(plan) == "the plans keep the same units"


def test_kernels_count_their_taps_once_as_an_index(tmp_path: Path) -> None:
    model, data = parts()
    method = DPP(epochs=1, tune_epochs=0)
    done = compress(model, data, method=method, target={"3": "kernel 2/8"}, progress=False)
    assert done.summary["layers"]["3"]["stored_bytes"] == (8 * 2 * 9 * 32 + 8 * 2 * 3) // 8
    assert done.directory is None


def test_filters_go_for_real(tmp_path: Path) -> None:
    model, data = parts()
    method = DPP(pattern="filter 50%", epochs=1, tune_epochs=1)
    done = compress(model, data, method=method, out=tmp_path / "run", progress=False)
    assert layer_of(done.model, "3").weight.shape == (4, 8, 3, 3)
    assert layer_of(done.model, "6").weight.shape == (8, 64)
    assert done.summary["after"]["macs"] < 0.6 * done.summary["before"]["macs"]
    again = load(tmp_path / "run" / "artifact", lambda: parts()[0])
    assert torch.equal(again(data.example_inputs), done.model(data.example_inputs))
    assert load_masks(tmp_path / "run" / "artifact") == {}


def test_the_plan_of_filters_is_the_masks_and_shared_filters_are_refused() -> None:
    model, data = parts()
    graph = prunus.trace(model, data.example_inputs)
    mask = torch.tensor([[True, False, True, True, False, False, True, False]])
    assert plan_of_filters(graph, {"3": mask}).kept["3"] == (0, 2, 3, 6)
    residual, x = ZOO["residual_option_b"].make(), ZOO["residual_option_b"].inputs(2)
    alone = sole_writers(prunus.trace(residual, x))
    assert "1.conv1" in alone
    assert "1.conv2" not in alone
    with pytest.raises(ConfigError, match=r"(?s)'1.conv2'.*shared.*1.conv1"):
        plan_of_filters(prunus.trace(residual, x), {"1.conv2": mask})


def test_the_command_writes_figures_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    common = ["compress", f"{script}:net", "--data", f"{script}:data", "--method", "dpp", "--epochs", "2"]
    with pytest.raises(SystemExit) as ended:
        main([*common, "--pattern", "weight 25%", "--ignore", "3", "--out", str(tmp_path / "run")])
    assert ended.value.code in (0, None)
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "6 512 25.0 % 2.5 kB" in shown  # 512 values of 32 bits with indices of 7
    assert "8.2 kB dense" in shown
    assert {p.name for p in (tmp_path / "run" / "figures").iterdir()} == {"masks.png", "learning.png"}
    assert "dense, with their zeros" in shown
    session = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / "run" / "model.onnx"))
    (images,) = session.get_inputs()
    x = torch.randn(3, *images.shape[1:])
    (found,) = session.run(None, {images.name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), prunus.load(tmp_path / "run" / "artifact")(x), atol=1e-5)
    skipped = ["--no-onnx", "--bits", "8", "--activation-bits", "8"]
    with pytest.raises(SystemExit) as ended:
        main([*common, "--pattern", "filter 50%", "--out", str(tmp_path / "without"), *skipped])
    assert ended.value.code in (0, None)
    assert (tmp_path / "without" / "summary.json").exists()
    assert not (tmp_path / "without" / "model.onnx").exists()
    refusals = {
        ("--budget", "macs<=50%", "--pattern", "2:4"): "said twice",
        ("--target", "macs<=50%"): "which method 'dpp' can't take",
        ("--pattern", "half"): "not a pattern",
        ("--pattern", "2:4", "--ignore", "nothing*"): "it matches no layer",
        ("--pattern", "weight 25%", "--bits", "3"): "'3' can't be its value",
        ("--pattern", "2:4", "--lr", "0.1"): "trains the weights along",
        ("--pattern", "2:4", "--scope", "uniform"): "patterns leave nothing to allocate",
        ("--pattern", "2:4", "--set", "epochs=1"): "epochs is set twice",
        ("--pattern", "2:4", "--allow", "inexact"): "has no use for it",
    }
    for wrong, message in refusals.items():
        with pytest.raises(SystemExit) as ended:
            main([*common, *wrong, "--out", str(tmp_path / "other")])
        assert ended.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "other").exists()


def test_the_command_line_refits_what_masks_leave(tmp_path: Path) -> None:
    script = tmp_path / "nets.py"
    script.write_text(SCRIPT)
    command = ["compress", f"{script}:net", "--data", f"{script}:data", "--method", "dpp", "--target", "weight 25%"]
    found = {}
    for name, repair in (("with", "examples=48"), ("without", "none")):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--set", "epochs=0", "--set", "tune_epochs=0", "--set", "init_std=0", "--labels", "none",
                  "--repair", repair, "--out", str(tmp_path / name)])  # fmt: skip
        assert ended.value.code in (0, None)
        found[name] = json.loads((tmp_path / name / "summary.json").read_text())
    assert [refit["layer"] for refit in found["with"]["repair"]] == ["3", "6", "8"]
    assert "repair" not in found["without"]
    assert found["with"]["loss"]["masked"] < found["without"]["loss"]["masked"]
    one, other = (load_masks(tmp_path / name / "artifact") for name in found)
    assert all(torch.equal(mask.mask, other[name].mask) for name, mask in one.items())


def test_the_door_of_the_release_before_warns_and_gives_the_same(tmp_path: Path) -> None:
    model, data = parts()
    method = DPP(pattern="weight 25%", epochs=1, tune_epochs=0)
    with pytest.warns(DeprecationWarning, match="compress"):
        old = prunus.sparsify(model, data, method=method, layers=["6"], out=tmp_path / "run", progress=False)
    new = compress(model, data, method=method, target={"6": "weight 25%"}, progress=False,
                   run=prunus.RunSettings(batch_size=64))  # fmt: skip
    assert torch.equal(old.model(data.example_inputs), new.model(data.example_inputs))
    assert list(old.masked.masks) == ["6"]
    assert old.directory == tmp_path / "run"
    assert old.saved is not None
    assert old.summary["layers"] == new.summary["layers"]


def test_what_would_fill_the_masks_again_is_refused() -> None:
    model, data = parts()
    with pytest.raises(ConfigError, match="trains the weights along"):
        compress(model, data, method="dpp", target="2:4", recovery=prunus.recovery.FinetuneConfig())
    with pytest.raises(ConfigError, match="no folder to go on in"):
        compress(model, data, method="dpp", target="2:4", run=prunus.RunSettings(resume=True))


def test_edges_stay_unless_named() -> None:
    model, _ = parts()
    assert maskable_layers(model) == ["3", "6"]
    assert maskable_layers(model, ["6"]) == ["3"]
    assert maskable_layers(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))) == ["0"]
    assert maskable_layers(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))) == ["0", "1"]
    assert maskable_layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))) == ["0"]
    words = nn.Sequential(nn.Embedding(9, 4), nn.Conv1d(4, 4, 3), nn.Linear(4, 4), nn.Linear(4, 2))
    assert maskable_layers(words) == ["1", "2"]
    with pytest.raises(ConfigError, match="no layer is left"):
        maskable_layers(model, ["*"])


def test_masks_survive_the_disk_and_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    mask = torch.tensor([[True, False, True] * 4, [False, True, True] * 4])
    path.write_bytes(packed_masks({"a.b": LayerMask("weight 8/12", mask, 4), "c": LayerMask("2:4", mask[:, :4])}))
    with pytest.raises(ArtifactError, match="different numbers"):
        read_masks(path)
    path.write_bytes(packed_masks({"a.b": LayerMask("weight 8/12", mask, 4)}))
    found = read_masks(path)["a.b"]
    assert torch.equal(found.mask, mask)
    assert (found.pattern, found.bits, found.kept) == ("weight 8/12", 4, 16)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ArtifactError, match="damaged"):
        read_masks(path)


def test_sizes_are_exact() -> None:
    mask = torch.zeros(3, 10, dtype=torch.bool)
    mask[:, :4] = True
    assert LayerMask("weight 4/10", mask).stored_bytes() == 3 * 4 * (32 + 4) // 8
    assert LayerMask("weight 4/10", mask, 1).stored_bytes() == -(-3 * 4 * (1 + 4) // 8)


def test_several_processes_would_see_the_same_masks() -> None:
    """The draws depend on the method's seed and a counter alone, not on torch's generator (which differs by rank)."""
    model, _ = parts()
    first = DPP(pattern="weight 25%").masks(model, ["3"], seed=1)["3"]
    torch.manual_seed(99)
    second = DPP(pattern="weight 25%").masks(model, ["3"], seed=1)["3"]
    weight = layer_of(model, "3").weight.detach()
    for _ in range(3):
        torch.randn(5)
        assert torch.equal(first(weight), second(weight))
