"""The benchmarks' networks have the published parameters and MACs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import ArtifactError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import nets  # noqa: E402

CHECKPOINTS = ROOT.parent / "shared" / "data" / "models" / "cifar10-resnet"
GREY, COLOUR = (2, 1, 28, 28), (2, 3, 32, 32)


def cost(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Weights of convolutions and linear layers, and MACs per example, counted by the slow and obvious rule."""
    macs = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        macs += module.weight.numel() * positions

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [m.register_forward_hook(count) for m in layers]
    # On the meta device shapes are computed and numbers are not, so that a WideResNet costs nothing.
    model.to("meta").eval()(torch.empty(shape, device="meta"))
    for handle in handles:
        handle.remove()
    return sum(m.weight.numel() for m in layers), macs


@pytest.mark.parametrize(
    ("model", "shape", "weights", "macs"),
    [
        (nets.LeNet(), GREY, 40.0e3, 498.8e3),
        (nets.LeNet((8, 9, 36, 17)), GREY, 7.97e3, 236.4e3),
        (nets.LeNet((8, 20, 50, 20)), GREY, 21.4e3, 388.4e3),
        (nets.LeNet300100(), GREY, 266.2e3, 266.2e3),
    ],
)
def test_small_nets_cost_what_the_papers_say(model: nn.Module, shape: tuple[int, ...], weights: float, macs: float):
    found = cost(model, shape)
    assert found == (pytest.approx(weights, rel=2e-3), pytest.approx(macs, rel=5e-4))


@pytest.mark.parametrize(
    ("make", "arguments", "weights", "macs"),
    [
        (nets.VGG16, (), 14.98e6, 313.5e6),
        (nets.VGG16, ((34, 34, 60, 60, 70, 101, 97, 88, 95, 85, 86, 67, 61, 55),), 0.635e6, 40.9e6),
        (nets.VGG16, ((39, 39, 63, 48, 55, 98, 97, 52, 62, 22, 42, 47, 47, 47),), 0.357e6, 39.4e6),
        (nets.WideResNet, (), 36.46e6, 5.95e9),
        (nets.WideResNet, ((75, 85, 80, 80, 159, 159, 154, 159, 315, 315, 314, 316),), 18.10e6, 2.97e9),
    ],
)
def test_cifar_nets_cost_what_the_papers_say(make: type[nn.Module], arguments: tuple, weights: float, macs: float):
    with torch.device("meta"):
        model = make(*arguments)
    found = cost(model, COLOUR)
    assert found == (pytest.approx(weights, rel=2e-3), pytest.approx(macs, rel=2e-3))


@pytest.mark.parametrize(
    ("make", "params"), [(nets.resnet20, 269_722), (nets.resnet32, 464_154), (nets.resnet56, 853_018)]
)
def test_resnets_have_the_published_parameters(make, params: int):
    assert sum(p.numel() for p in make().parameters()) == params


def test_hidden_widths_change_only_the_inside_of_blocks():
    narrow = nets.CifarResNet(20, hidden=(11, 18, 30))
    assert narrow.layer2[0].conv1.out_channels == 18
    assert narrow.layer2[0].conv2.out_channels == 32
    assert narrow(torch.zeros(COLOUR)).shape == (2, 10)


def test_option_a_shortcut_takes_every_other_pixel_between_zero_channels():
    x = torch.randn(2, 16, 8, 8)
    out = nets.PadShortcut(32)(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="the public checkpoints are not on this machine")
@pytest.mark.parametrize(("name", "depth"), [("resnet20", 20), ("resnet32", 32), ("resnet56", 56)])
def test_public_checkpoints_load(name: str, depth: int):
    path = next(CHECKPOINTS.glob(f"{name}-*.th"))
    model = nets.load_checkpoint(path)
    stored = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    assert 6 * len(model.layer1) + 2 == depth
    assert not model.training
    assert all(torch.equal(v, stored[f"module.{k}"]) for k, v in model.state_dict().items() if "tracked" not in k)


def test_damaged_or_foreign_checkpoints_are_refused(tmp_path: Path):
    path = tmp_path / "weights.th"
    torch.save({"state_dict": nets.resnet20().state_dict()}, path)
    assert nets.load_checkpoint(path).linear.in_features == 64
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ArtifactError, match="cannot be read"):
        nets.load_checkpoint(path)
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2)}}, path)
    with pytest.raises(ArtifactError, match="another architecture"):
        nets.load_checkpoint(path)
