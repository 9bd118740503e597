"""Pruned models of timm go home: what they say of their widths is true, and stock timm loads their folder."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError, ExportError, MissingDependencyError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Timm(nn.Module):
    """What timm's models hold and how a new classifier is made, with a layer before it whose width is another."""

    def __init__(self, stem: int = 8, body: int = 12, hidden: int = 16) -> None:
        super().__init__()
        self.pretrained_cfg = {"architecture": "small"}
        self.stem, self.act = nn.Conv2d(3, stem, 3), nn.ReLU()
        self.body = nn.Sequential(nn.Conv2d(stem, body, 3, bias=False), nn.BatchNorm2d(body), nn.ReLU())
        self.hidden, self.fc = nn.Linear(body, hidden), nn.Linear(hidden, 4)
        self.feature_info = [
            {"num_chs": stem, "reduction": 1, "module": "act"}, {"num_chs": body, "reduction": 1, "module": "body"}
        ]  # fmt: skip
        self.num_features, self.head_hidden_size = body, hidden

    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(self.act(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.hidden(x.mean((2, 3))).relu()
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, classes: int) -> None:
        self.fc = nn.Linear(self.head_hidden_size, classes)


def dense() -> Timm:
    torch.manual_seed(0)
    return Timm().eval()


def smaller() -> Timm:
    return prunus.prune(dense(), X, method="l1", target={"stem": 6, "body.0": 5, "hidden": 7}, progress=False).model


def said(model: Timm) -> tuple[list[int], int, int]:
    return [entry["num_chs"] for entry in model.feature_info], model.num_features, model.head_hidden_size


def test_widths_of_features_are_those_that_are_left(tmp_path: Path) -> None:
    model, small = dense(), smaller()
    assert said(small) == ([6, 5], 5, 7)
    assert said(model) == ([8, 12], 12, 16)
    plan = prunus.Plan.from_kept(prunus.trace(model, X), {"body.0": range(3)})
    prunus.apply_(model, plan, X)
    assert said(model) == ([8, 3], 3, 16)
    assert said(prunus.load(prunus.save(tmp_path / "a", model, plan), Timm)) == said(model)
    small.reset_classifier(3)
    assert small(X).shape == (2, 3)


def test_widths_read_in_training_leave_statistics_as_they_are() -> None:
    model = dense().train()
    plan = prunus.Plan.from_kept(prunus.trace(model, X), {"stem": range(3)})
    before = {n: t.clone() for n, t in model.named_buffers()}
    prunus.apply_(model, plan, X)
    assert all(torch.equal(t, before[n]) for n, t in model.named_buffers())
    assert model.training
    assert not model.act._forward_hooks


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """timm's four functions for the model above; what its string of shapes can say is up to `adapted`."""

    def save(model: nn.Module, folder: Path, safe_serialization: bool) -> None:
        Path(folder).mkdir()
        save_file(model.state_dict(), Path(folder) / "model.safetensors")

    package, models = ModuleType("timm"), ModuleType("timm.models")
    package.create_model = lambda name: dense()  # type: ignore[attr-defined]
    models.save_for_hf = save  # type: ignore[attr-defined]
    models.load_checkpoint = lambda model, path: model.load_state_dict(load_file(path))  # type: ignore[attr-defined]
    models.adapt_model_from_string = adapted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", package)
    monkeypatch.setitem(sys.modules, "timm.models", models)
    return models


def adapted(model: Timm, text: str) -> Timm:
    shapes = {name: eval(shape) for name, shape in (entry.split(":") for entry in text.split("***"))}
    return Timm(shapes["stem.weight"][0], shapes["body.0.weight"][0], shapes["hidden.weight"][0])


@pytest.mark.usefixtures("timm")
def test_the_folder_holds_the_shapes_and_is_compared(tmp_path: Path) -> None:
    small = smaller()
    done = prunus.export(small, X, tmp_path / "small", form="timm")
    assert done.error == 0.0
    text = (tmp_path / "small/shapes.txt").read_text()
    assert "***body.0.weight:[5, 6, 3, 3]***body.1.weight:[5]***" in text
    assert torch.equal(load_file(tmp_path / "small/model.safetensors")["fc.weight"], small.fc.weight)


def test_what_its_shapes_can_not_say_is_refused(timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = smaller()
    timm.adapt_model_from_string = lambda model, text: Timm(6, 5)
    with pytest.raises(ConfigError, match=r"hidden.weight' \(16, 5\) of the shapes, the pruned model has \(7, 5\)"):
        prunus.export(small, X, tmp_path / "small", form="timm")
    timm.adapt_model_from_string = lambda model, text: 1 / 0
    with pytest.raises(ConfigError, match="division by zero"):
        prunus.export(small, X, tmp_path / "small", form="timm")
    timm.adapt_model_from_string, timm.load_checkpoint = adapted, lambda model, path: None
    with pytest.raises(ExportError, match="differs by"):
        prunus.export(small, X, tmp_path / "small", form="timm")
    with pytest.raises(ConfigError, match="not made by timm"):
        prunus.export(nn.Linear(3, 2), X, tmp_path / "small", form="timm")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match=r"prunus\[timm\]"):
        prunus.export(small, X, tmp_path / "small", form="timm")
    assert not (tmp_path / "small").exists()
