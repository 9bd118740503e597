"""What the int8 export does around the tool that rewrites the graph."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import ConfigError, ExportError
from prunus.formats.quiet import quiet


@pytest.mark.parametrize("before", [logging.NOTSET, logging.CRITICAL])
def test_the_callers_logging_is_put_back(before: int) -> None:
    logging.disable(before)
    try:
        with quiet():
            assert logging.root.manager.disable == max(before, logging.WARNING)
        assert logging.root.manager.disable == before
    finally:
        logging.disable(logging.NOTSET)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(256, 10)).eval()


def images(count: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_any_pruned_network_is_finished_in_eight_bits(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    small = prunus.prune(net(), images(2), method="l1", target="macs<=50%").model
    path = tmp_path / "m.onnx"
    done = prunus.export(small, images(2), path, form="int8", calibration=[(images(), torch.zeros(64))])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    held_out = images()[32:]
    made = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: held_out.numpy()})[0])
    wanted = small(held_out).detach()
    found = float((made - wanted).abs().mean() / wanted.abs().mean())
    assert done.error == pytest.approx(found, rel=1e-3)
    assert 0 < found < 0.2
    same = int((made.argmax(1) == wanted.argmax(1)).sum())
    assert f"the same answer on {same} of 32 held-out examples" in done.note
    import onnx

    held = {i.name: i.data_type for i in onnx.load(path).graph.initializer if len(i.dims) > 1}
    assert held
    assert set(held.values()) == {onnx.TensorProto.INT8}  # every matrix and kernel


def test_models_of_several_inputs_are_quantised(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(4, 8)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(y)

    torch.manual_seed(0)
    batch = {"x": torch.randn(64, 6), "y": torch.randn(64, 4)}
    done = prunus.export(Two().eval(), batch, tmp_path / "m.onnx", form="int8", calibration=[batch])
    assert done.error is not None
    assert done.error < 0.1


@pytest.mark.parametrize("calibration", [None, [(images(7), torch.zeros(7))]])
def test_grids_need_examples(tmp_path: Path, calibration: Any) -> None:
    with pytest.raises(ConfigError, match="found on examples"):
        prunus.export(net(), images(2), tmp_path / "m.onnx", form="int8", calibration=calibration)
    assert not (tmp_path / "m.onnx").exists()


def test_a_file_that_is_another_network_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    odd = images()
    odd[0, 0, 0, 0] = 1e6  # one example stretches the grid so that all others lie on one point
    with pytest.raises(ExportError, match="another network"):
        prunus.export(net(), images(2), tmp_path / "m.onnx", form="int8", calibration=[(odd, torch.zeros(64))])
    assert not (tmp_path / "m.onnx").exists()
