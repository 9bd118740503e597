"""The benchmark networks cost what the papers' tables say, the shared checkpoints fit them, the zoo's page its rows."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import ArtifactError
from prunus.pipeline.demo import LeNet5
from prunus.plan.cost import count_cost

ROOT = Path(__file__).parents[1]
CHECKPOINTS = ROOT.parent / "shared" / "data" / "models" / "cifar10-resnet"


def _benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nets = _benchmark("nets")


def _cost(model: nn.Module, channels: int, size: int) -> tuple[int, int]:
    cost = count_cost(prunus.trace(model, torch.zeros(2, channels, size, size)))
    return cost.weights, cost.macs


@pytest.mark.parametrize(
    ("widths", "weights", "macs"),
    [((10, 20, 100, 25), 40_000, 498_750), ((8, 9, 36, 17), 7_966, 236_366), ((8, 20, 50, 20), 21_400, 388_400)],
)
def test_small_lenet(widths: tuple[int, ...], weights: int, macs: int) -> None:
    assert _cost(nets.SmallLeNet(widths), 1, 28) == (weights, macs)


def test_lenets() -> None:
    assert _cost(LeNet5(), 1, 28) == (430_500, 2_293_000)
    assert _cost(nets.LeNet300(), 1, 28) == (266_200, 266_200)


@pytest.mark.parametrize(
    ("widths", "weights", "macs"),
    [
        (nets.VGG_DENSE, 14.98e6, 313.5e6),
        ((34, 34, 60, 60, 70, 101, 97, 88, 95, 85, 86, 67, 61, 55), 0.635e6, 40.9e6),
        ((39, 39, 63, 48, 55, 98, 97, 52, 62, 22, 42, 47, 47, 47), 0.357e6, 39.4e6),
    ],
)
def test_vgg(widths: tuple[int, ...], weights: float, macs: float) -> None:
    found = _cost(nets.CifarVGG16(widths), 3, 32)
    assert found == (pytest.approx(weights, rel=2e-3), pytest.approx(macs, rel=2e-3))


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (56, 853_018)])
def test_resnet_parameters(depth: int, parameters: int) -> None:
    assert sum(p.numel() for p in nets.CifarResNet(depth).parameters()) == parameters


def test_resnet20_macs() -> None:
    stem, stages = 432 * 1024, (6 * 2304 * 1024, (4608 + 5 * 9216) * 256, (18432 + 5 * 36864) * 64)
    assert _cost(nets.resnet20(), 3, 32)[1] == stem + sum(stages) + 640


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="the shared checkpoints are not here")
@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet56"])
def test_shared_checkpoints_load(name: str) -> None:
    path = next(CHECKPOINTS.glob(f"{name}-*.th"))
    model = nets.load_checkpoint(getattr(nets, name)(), path)
    assert float(model.bn1.running_mean.abs().sum()) > 0
    assert torch.isfinite(model.eval()(torch.randn(2, 3, 32, 32))).all()


def test_checkpoint_of_another_net_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in nets.resnet32().state_dict().items()}}, path)
    model = nets.resnet20()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ArtifactError, match="another architecture"):
        nets.load_checkpoint(model, path)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert nets.load_checkpoint(nets.resnet32(), path) is not None


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ArtifactError, match="cannot be read"):
        nets.load_checkpoint(nets.resnet20(), path)


def test_the_support_page_is_that_of_the_newest_rows() -> None:
    rows = [json.loads(line) for line in (ROOT / "benchmarks" / "results" / "zoo.jsonl").read_text().splitlines()]
    page, _ = _benchmark("zoo_table").page(rows)
    assert (ROOT / "docs" / "support.md").read_text() == page, "run benchmarks/zoo.py --table"
