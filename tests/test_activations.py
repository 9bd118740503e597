"""Eight-bit inputs: the grid, what training does to it, and the ONNX file that computes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import ConfigError, ExportError
from prunus.formats.artifact import load_masks
from prunus.formats.exports import add_exports, chosen
from prunus.formats.int8 import export_onnx_int8
from prunus.formats.registry import Exportable
from prunus.masks.activations import MOMENTUM, QuantizedInput, quantized_inputs
from prunus.masks.file import LayerMask
from prunus.methods.dpp import DynamicProbabilisticPruning as DPP
from prunus.pipeline.compress import compress
from prunus.surgery.rewritten import as_module
from test_compress_masks import parts


def test_inputs_lie_on_the_grid_half_a_step_off_at_most() -> None:
    grid = QuantizedInput(8, largest=2.0).eval()
    x = torch.linspace(-2, 2, 1001)
    found = grid(x)
    assert float((found - x).abs().max()) <= grid.scale / 2 + 1e-7
    assert torch.equal(grid(found), found)
    assert float(grid(torch.tensor([5.0]))) == pytest.approx(2.0)
    assert float(grid(torch.zeros(1))) == 0.0


def test_the_gradient_stops_where_the_grid_ends() -> None:
    x = torch.tensor([-3.0, -1.0, 0.5, 2.5], requires_grad=True)
    QuantizedInput(8, largest=2.0).eval()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_training_moves_the_grid_and_judging_does_not() -> None:
    grid = QuantizedInput(8)
    grid(torch.tensor([4.0]))
    assert float(grid.largest) == 4.0
    grid(torch.tensor([-2.0]))
    assert float(grid.largest) == pytest.approx(4.0 + MOMENTUM * (2.0 - 4.0))
    before = float(grid.largest)
    grid.eval()(torch.tensor([100.0]))
    assert float(grid.largest) == before


def test_hooks_come_off_and_unknown_layers_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    x = torch.randn(5, 3)
    before = model(x)
    seen: list[Tensor] = []
    with quantized_inputs(model, {"1": QuantizedInput(8, largest=0.5)}):
        handle = model[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model.eval()(x)
        handle.remove()
    steps = seen[0] / (0.5 / 127)
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert torch.equal(model(x), before)
    with (
        pytest.raises(ConfigError, match="'9'"),
        quantized_inputs(model, {"0": QuantizedInput(), "9": QuantizedInput()}),
    ):
        pass
    assert not model[0]._forward_pre_hooks


def test_a_captured_graph_has_its_inputs_on_the_same_grids() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.randn(4, 1, 4, 4)
    graph = as_module(torch.export.export(model, (x,))).eval()
    grids = {"0": QuantizedInput(8, largest=9.0), "3": QuantizedInput(8, largest=5.0)}
    with quantized_inputs(model, grids):
        wanted = model(x)
    with quantized_inputs(graph, grids):
        torch.testing.assert_close(graph(x), wanted)
    assert not torch.allclose(wanted, model(x), rtol=1e-3)
    torch.testing.assert_close(graph(x), model(x))


def test_a_grid_that_no_graph_takes_is_refused() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Module()
            self.layer.weight = nn.Parameter(torch.ones(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.layer.weight.t()

    with (
        pytest.raises(ConfigError, match=r"(?s)'layer'.*own class"),
        quantized_inputs(model := Other(), {"layer": QuantizedInput(8, largest=1.0)}),
    ):
        model(torch.ones(1, 3))


@pytest.mark.parametrize("bits", [8, 4, 1])
def test_the_folder_has_an_onnx_file_that_computes_in_eight_bits(tmp_path: Path, bits: Any) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    if bits == 4 and tuple(map(int, runtime.__version__.split(".")[:2])) < (1, 24):
        pytest.skip("this ONNX Runtime can't pack four bits")
    model, data = parts()
    method = DPP(pattern="weight 50%", epochs=1, tune_epochs=1, bits=bits, activation_bits=8)
    done = compress(model, data, method=method, out=tmp_path / "run", progress=False)
    masked = done.result.masked
    assert masked is not None
    assert done.saved is not None
    subject = Exportable(done.model, data.example_inputs, done.result.plan, done.masks, batch=data.train.inputs)
    assert add_exports(done.saved, subject, chosen(["int8"]), print) is None
    masks = load_masks(tmp_path / "run" / "artifact")
    assert {n: m.input_scale for n, m in masks.items()} == {n: q.scale for n, q in masked.inputs.items()}
    path = tmp_path / "run" / "model_int8.onnx"
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    for name in masks:
        weight = dict(done.model.named_modules())[name].weight
        held = stored[f"{name}.weight_quantized"]
        assert str(held.dtype) == ("int4" if bits == 4 else "int8")
        codes = torch.from_numpy(held.astype("int8"))
        scale = torch.from_numpy(stored[f"{name}.weight_scale"].copy())
        assert torch.allclose(codes * scale.view(-1, *[1] * (weight.dim() - 1)), weight.detach(), rtol=1e-5, atol=1e-8)
    images = data.train.inputs
    session = runtime.InferenceSession(str(path))
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    with quantized_inputs(done.model, masked.inputs), torch.no_grad():
        wanted = done.model(images)
    # Both round; a value on the edge may fall on either side, so not every output is equal.
    assert float((found - wanted).abs().mean()) < 1e-3 * float(wanted.abs().mean())


def test_what_eight_bits_cannot_hold_is_refused(tmp_path: Path) -> None:
    model, data = parts()
    mask = torch.ones(8, 8, dtype=torch.bool)
    path = tmp_path / "out.onnx"
    for found in (LayerMask("weight 50%", mask, None, 0.1), LayerMask("weight 50%", mask, 8)):
        with pytest.raises(ConfigError, match="layer '3'"):
            export_onnx_int8(model, {"3": found}, data.train.inputs, path)
    with pytest.raises(ConfigError, match="no layer"):
        export_onnx_int8(model, {}, data.train.inputs, path)
    pytest.importorskip("onnxruntime")
    with pytest.raises(ExportError, match="'5'"):
        export_onnx_int8(model, {"5": LayerMask("weight 50%", mask, 8, 0.1)}, data.train.inputs, path)
    assert not path.exists()
    with pytest.raises(ConfigError, match=r"(?s)activation_bits.*4.*8"):
        DPP(activation_bits=4)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"(?s)bits.*3.*8, 4, 2, 1"):
        DPP(bits=3)  # type: ignore[arg-type]
