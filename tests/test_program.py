"""Programs in plain data: they compute what was captured, bit for bit, and keep what the model's tensors were."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import ArtifactError, DataError, ExportError
from prunus.formats.artifact import read_manifest
from prunus.formats.onnx import export_onnx
from prunus.formats.program.files import program_files, read_program
from prunus.formats.program.operators import refusal, resolve
from prunus.formats.program.structure import NamedOutputs, NamedTuple
from prunus.graph.capture import capture
from prunus.runtime.calling import call
from prunus.surgery.rewritten import RewrittenModel, as_module
from zoo import ZOO, named, noise

ALL = bool(os.environ.get("PRUNUS_EXPLORE"))
SOME = (
    "norms_without_parameters", "instance_norm", "conv_transpose_unet", "tied_linear", "channel_shuffle",
    "split_by_size",
    "pixel_shuffle", "prelu", "conv3d", "kernel_in_a_buffer", "chosen_channels", "add_constant_inline", "inplace_relu",
    "dropout", "two_inputs", "keyword_inputs", "two_outputs", "dict_output", "activations", "embedding_mlp",
    "heads_grouped_by_kernel", "heads_written_bias", "heads_empty_bias_in_code", "heads_slopes_in_code", "lstm",
    "weight_norm", "residual_option_a",
)  # fmt: skip


def stored(model: nn.Module, inputs: Any, folder: Path) -> RewrittenModel:
    """The model's program, written and read again."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    files = program_files(model, inputs)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    first = {id(t): n for n, t in reversed(list(model.state_dict(keep_vars=True).items()))}
    tensors = {n: t.detach().contiguous() for n, t in model.state_dict(keep_vars=True).items() if first[id(t)] == n}
    save_file(tensors, folder / "weights.safetensors")
    return read_program(folder, folder / "weights.safetensors", own_tensors="program.safetensors" in files)


def same(a: Any, b: Any) -> bool:
    left, right = torch.utils._pytree.tree_leaves(a), torch.utils._pytree.tree_leaves(b)
    return len(left) == len(right) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(left, right, strict=True)
    )


def seeded(model: nn.Module, inputs: Any) -> Any:
    torch.manual_seed(0)
    return call(model, inputs)


@pytest.mark.parametrize("name", [n for n, a in ZOO.items() if not a.refused and (ALL or n in SOME)])
def test_a_program_computes_what_was_captured(name: str, tmp_path: Path) -> None:
    animal = ZOO[name]
    model = animal.make()
    read, captured = stored(model, animal.inputs(2), tmp_path), as_module(
        capture(model, animal.inputs(2), dynamic_batch=True)
    ).eval()  # fmt: skip
    for batch in (2, 3):
        assert same(call(read, animal.inputs(batch)), call(captured, animal.inputs(batch)))
    assert same(seeded(read.train(), animal.inputs(3)), seeded(captured.train(), animal.inputs(3)))
    assert list(read.state_dict()) == list(captured.state_dict())
    learn = {n: p.requires_grad for n, p in model.named_parameters(remove_duplicate=False)}
    assert all(p.requires_grad == learn[n] for n, p in read.named_parameters(remove_duplicate=False))


def test_ties_freezing_and_buffers_are_kept(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Linear(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)
            self.b.weight = self.a.weight
            self.a.bias.requires_grad_(False)
            self.register_buffer("kept", torch.randn(6))
            self.register_buffer("outside", torch.randn(6), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.b(self.a(x)) + self.kept * self.outside) + torch.tensor([0.5])

    model = Model()
    read = stored(model.eval(), torch.randn(2, 6), tmp_path)
    assert read.a.weight is read.b.weight
    assert not read.a.bias.requires_grad
    assert "kept" in read.state_dict()
    assert "outside" not in read.state_dict()
    x = torch.randn(5, 6)
    before = read.norm.running_mean.clone()
    read.train()(x).sum().backward()
    model.train()(x).sum().backward()
    assert torch.allclose(read.a.weight.grad, model.a.weight.grad, atol=1e-6)
    assert not torch.equal(read.norm.running_mean, before)
    assert torch.allclose(read.norm.running_mean, model.norm.running_mean, atol=1e-6)
    for again in (copy.deepcopy(read), pickle.loads(pickle.dumps(read))):
        assert same(again.eval()(x), read.eval()(x))
        assert again.a.weight is again.b.weight


Pair = namedtuple("Pair", "first second")


@dataclass
class Answer:
    """What a model of a user's own returns."""

    logits: Tensor
    hidden: Tensor | None = None


torch.export.register_dataclass(Answer, serialized_type_name="tests.Answer")


class Returns(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.wrap = nn.Linear(4, 3), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.fc(x))


def test_nested_outputs_come_back_without_their_classes(tmp_path: Path) -> None:
    x = torch.randn(3, 4)

    def read(wrap: Callable[[Tensor], Any]) -> tuple[Any, Tensor]:
        model = Returns(wrap)
        return stored(model, torch.randn(2, 4), tmp_path)(x), model.fc(x)

    nested, y = read(lambda y: {"a": [y, (y + 1, None)], "b": {"c": 3, 7: y * 2}})
    assert torch.equal(nested["a"][1][0], y + 1)
    assert nested["a"][1][1] is None
    assert nested["b"]["c"] == 3
    assert torch.equal(nested["b"][7], y * 2)
    pair, y = read(lambda y: Pair(y, -y))
    assert isinstance(pair, NamedTuple)
    first, second = pair
    assert torch.equal(first, y)
    assert torch.equal(pair.second, second)
    assert torch.equal(second, -y)
    answer, y = read(lambda y: Answer(y))
    assert isinstance(answer, NamedOutputs)
    assert torch.equal(answer.logits, y)
    assert torch.equal(answer["logits"], y)
    assert torch.equal(answer[0], y)
    with torch.no_grad():
        answer = read(Answer)[0]
    for kept in (copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):
        assert torch.equal(kept.logits, answer[0])
    model = stored(Returns(lambda y: Answer(y)), torch.randn(2, 4), tmp_path)
    twice = stored(model, torch.randn(2, 4), tmp_path)  # a read program is a model like any other
    assert torch.equal(twice(x).logits, model(x).logits)


def test_transformers_outputs_need_no_transformers_to_be_read(tmp_path: Path) -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    model = Returns(lambda y: outputs.SequenceClassifierOutput(logits=y, hidden_states=(y, y + 1)))
    found = stored(model, torch.randn(2, 4), tmp_path)(torch.randn(3, 4))
    assert type(found) is NamedOutputs
    assert found.logits.shape == (3, 3)
    assert len(found.hidden_states) == 2
    assert not hasattr(found, "loss")


class Regions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.drop = nn.Linear(4, 4), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            y = self.drop(self.fc(x))
        with torch.enable_grad():
            z = y * 2
        with torch.autocast("cpu", dtype=torch.bfloat16):
            w = self.fc(z)
        return torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - self.fc.bias.to(t), (w,))


def test_regions_keep_their_settings(tmp_path: Path) -> None:
    model = Regions().eval()
    read = stored(model, torch.randn(2, 4), tmp_path)
    for x in (torch.rand(3, 4), -torch.rand(5, 4)):
        assert read(x).dtype == torch.bfloat16
        assert torch.equal(read(x), model(x))
    x = torch.rand(3, 4)
    assert same(seeded(read.train(), x), seeded(model.train(), x))
    assert same(copy.deepcopy(read.eval())(x), model.eval()(x))


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc, self.out = nn.Embedding(11, 6), nn.Linear(6, 9), nn.Linear(9, 11)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        positions = torch.arange(ids.shape[1], dtype=torch.float32).unsqueeze(1) / ids.shape[1]
        hidden = F.gelu(self.fc(self.table(ids) + positions), approximate="tanh")
        if mask is not None:
            hidden = hidden.masked_fill(~mask.unsqueeze(-1), float("-inf")).nan_to_num(neginf=-0.5)
        return self.out(hidden.reshape(ids.shape[0] * ids.shape[1], 9)).view(*ids.shape, 11)


def test_texts_of_any_length_and_keywords(tmp_path: Path) -> None:
    model = Text().eval()

    def texts(batch: int, length: int) -> dict[str, Tensor]:
        return {"ids": torch.randint(0, 11, (batch, length)), "mask": torch.rand(batch, length) > 0.3}

    read = stored(model, texts(2, 5), tmp_path)
    for inputs in (texts(1, 3), texts(4, 9)):
        assert torch.equal(read(**inputs), model(**inputs))
        assert torch.equal(read(mask=inputs["mask"], ids=inputs["ids"]), model(**inputs))


class LongTexts(nn.Module):
    """Asks the length of its text for a flag, and keeps a sparse table for methods that no program has."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.end = nn.Embedding(9, 8), nn.Linear(8, 3)
        self.register_buffer("table", torch.eye(4).to_sparse(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        q = self.embedding(ids)[:, None]
        return self.end(F.scaled_dot_product_attention(q, q, q, is_causal=ids.shape[1] > 1)[:, 0])


def test_where_a_length_is_asked_for_a_flag_texts_keep_it_and_sparse_tables_stay_out(tmp_path: Path) -> None:
    model = LongTexts().eval()
    read = stored(model, torch.randint(9, (2, 6)), tmp_path)
    ids = torch.randint(9, (5, 6))
    torch.testing.assert_close(read(ids), model(ids))
    with pytest.raises(DataError, match="any, 6"):
        read(ids[:, :4])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_stay(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Softmax(-1)).to(dtype)
    x = torch.randn(3, 4, dtype=dtype)
    read = stored(model, x, tmp_path)
    assert read(x).dtype == dtype
    assert torch.equal(read(x), model(x))


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4)).eval()


IMAGES = torch.randn(4, 1, 8, 8)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    result = prunus.prune(classifier(), IMAGES, method="l1", target=0.5)
    return prunus.save(tmp_path / "artifact", result.model, result.plan)


def test_a_loaded_artifact_is_used_like_any_model(artifact: Path, tmp_path: Path) -> None:
    model = prunus.load(artifact)
    assert torch.equal(model(IMAGES), prunus.load(artifact, classifier)(IMAGES))
    assert {g.name for g in prunus.trace(model, IMAGES).channel_groups} == {"0", "4"}
    with torch.inference_mode():
        inside = prunus.load(artifact)
    inside(IMAGES).sum().backward()
    if pytest.importorskip("onnxruntime"):
        assert export_onnx(model, IMAGES, tmp_path / "m.onnx") < 1e-4


def test_weights_are_stored_once(artifact: Path) -> None:
    assert not (artifact / "program.safetensors").exists()
    assert not (artifact / "program.pt2").exists()
    names = {e["name"] for e in json.loads((artifact / "program.json").read_text())["tensors"].values()}
    assert names <= {*prunus.load(artifact, classifier).state_dict()}


def test_artifacts_of_the_older_format_are_read_with_a_factory_alone(artifact: Path) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text())
    (artifact / "program.json").unlink()
    (artifact / "program.pt2").write_bytes(b"whatever")
    digests = {n: d for n, d in manifest["sha256"].items() if n != "program.json"}
    digests["program.pt2"] = hashlib.sha256(b"whatever").hexdigest()
    manifest |= {"format": 1, "sha256": digests}
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    assert prunus.load(artifact, classifier)(IMAGES).shape == (4, 4)
    with pytest.raises(ArtifactError, match="older prunus"):
        prunus.load(artifact)


def test_without_a_program_weights_and_plan_are_saved_all_the_same(tmp_path: Path) -> None:
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.fc(torch.as_strided(x, (x.shape[0], 4), (4, 1)))))

    x = torch.randn(3, 4)
    with pytest.raises(ExportError, match="as_strided"):
        program_files(Strided(), x)
    result = prunus.prune(Strided(), x, method="l1", target=0.5)
    folder = prunus.save(tmp_path / "a", result.model, result.plan)
    assert "as_strided" in str(read_manifest(folder).no_program)
    assert "strided" in (folder / "README.md").read_text()  # the card escapes the rest
    with pytest.raises(ArtifactError, match="factory"):
        prunus.load(folder)
    assert torch.equal(prunus.load(folder, Strided)(x), result.model.eval()(x))


@pytest.mark.parametrize(
    "name",
    ["aten.from_file.default", "aten.set_.source_Tensor", "aten.resize_.default", "aten.as_strided.default",
     "aten.empty.memory_format", "aten.add.out", "aten.relu_backward.default", "aten.record_stream.default",
     "aten.sparse_coo_tensor.size", "aten._nested_view_from_buffer.default", "aten.quantized_lstm.input",
     "aten._sparse_coo_tensor_unsafe.default", "aten.__class__.default", "aten.add.__class__", "aten.save.default",
     "aten.add", "prims.add.default", "prunus.condensed.default", "os.system.default", "aten..", ""],
)  # fmt: skip
def test_operations_that_no_program_may_hold(name: str) -> None:
    assert resolve(name) is None


def test_operations_of_other_libraries_are_refused() -> None:
    assert refusal(torch.ops.prunus.condensed.default) is not None
    assert refusal(torch.ops.aten.add.Tensor) is None


def test_models_of_two_inputs_by_name_are_read(tmp_path: Path) -> None:
    assert noise(6)(2).shape == (2, 6)
    model = ZOO["keyword_inputs"].make()
    read = stored(model, named(2), tmp_path)
    assert same(read(*named(3).values()), call(model, named(3)))
