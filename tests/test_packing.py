"""Condensed layers are taken where they are faster, and the outputs stay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import ConfigError
from prunus.masks.file import LayerMask
from prunus.masks.layers import layer_of
from prunus.masks.patterns import Pattern
from prunus.plan.plan import Plan
from prunus.sparse import choose as packing
from prunus.sparse.layers import CondensedConv2d, CondensedLinear


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.head = nn.Linear(8, 5)
        self.unused = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(input=self.grouped(self.first(x)).mean((2, 3)))


@pytest.fixture
def net() -> tuple[nn.Module, dict[str, LayerMask]]:
    torch.manual_seed(0)
    model, masks = Net(), {}
    for name in ("first", "grouped", "head", "unused"):
        layer = layer_of(model, name)
        layout = Pattern.parse("weight 50%").layout(layer, name)
        mask = torch.zeros(layout.rows, layout.n, dtype=torch.bool)
        mask[:, : layout.k] = True
        with torch.no_grad():
            layer.weight.mul_(layout.on_weight(mask))
        masks[name] = LayerMask("weight 50%", mask)
    return model.train(), masks


def clock(slow: type[nn.Module]) -> Callable[..., tuple[list[float], list[float]]]:
    """Instead of a clock: this kind of module takes twice as long as any other."""

    def interleaved(before: object, after: object, *_: object) -> tuple[list[float], list[float]]:
        first, second = ([2.0 if isinstance(run.func, slow) else 1.0] for run in (before, after))  # type: ignore[attr-defined]
        return first, second

    return interleaved


def test_the_faster_form_of_each_layer_stays(
    net: tuple[nn.Module, dict[str, LayerMask]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, masks = net
    x = torch.randn(2, 3, 6, 6)
    wanted = copy.deepcopy(model).eval()(x)
    monkeypatch.setattr(packing, "interleaved", clock(CondensedLinear))
    ratios = prunus.condense_where_faster_(model, masks, x)
    assert ratios == {"first": 1.0, "grouped": None, "head": 2.0, "unused": None}
    assert not any(isinstance(m, CondensedLinear | CondensedConv2d) for m in model.modules())
    monkeypatch.setattr(packing, "interleaved", clock(nn.Conv2d))
    ratios = prunus.condense_where_faster_(model, masks, (x,))
    assert ratios == {"first": 0.5, "grouped": None, "head": 1.0, "unused": None}
    assert isinstance(model.get_submodule("first"), CondensedConv2d)
    assert isinstance(model.get_submodule("head"), nn.Linear)
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert torch.allclose(model.eval()(x), wanted, atol=1e-5)


def test_it_measures(net: tuple[nn.Module, dict[str, LayerMask]]) -> None:
    model, masks = net
    ratios = prunus.condense_where_faster_(model, masks, {"x": torch.randn(2, 3, 6, 6)}, repeats=3)
    assert {n: r is not None and r > 0 for n, r in ratios.items()} == {
        "first": True, "grouped": False, "head": True, "unused": False,
    }  # fmt: skip


def test_masks_that_do_not_belong_to_the_weights_are_refused(
    net: tuple[nn.Module, dict[str, LayerMask]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, masks = net
    monkeypatch.setattr(packing, "interleaved", clock(nn.Conv2d))
    with torch.no_grad():
        layer_of(model, "head").weight.add_(1)
    with pytest.raises(ConfigError, match=r"(?s)'head'.*not zero"):
        prunus.condense_where_faster_(model, masks, torch.randn(2, 3, 6, 6))
    assert isinstance(model.get_submodule("first"), nn.Conv2d)


def test_an_artifact_without_its_class_is_refused(tmp_path: Path, net: tuple[nn.Module, dict[str, LayerMask]]) -> None:
    model, masks = net
    images = torch.randn(2, 3, 6, 6)
    plan = Plan.from_kept(prunus.trace(model.eval(), images), {}, method="dpp", asked="weight 50%")
    prunus.save(tmp_path / "artifact", model, plan, example_inputs=images, masks=masks)
    loaded = prunus.load(tmp_path / "artifact")
    with pytest.raises(ConfigError, match=r"(?s)loaded without its class.*load\(folder, MyModel\)"):
        prunus.condense_where_faster_(loaded, prunus.load_masks(tmp_path / "artifact"), images)
    found = prunus.condense_where_faster_(
        prunus.load(tmp_path / "artifact", Net), prunus.load_masks(tmp_path / "artifact"), images
    )
    assert list(found) == list(masks)
