"""transformers: pruned in their own class, loaded by stock `from_pretrained`, generating with their cache."""

from __future__ import annotations

import copy
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import prunus
from prunus.cli.app import main
from prunus.data.sources import load_data
from prunus.errors import ArtifactError, ConfigError, DataError, ExportError
from prunus.formats.artifact import load_masks
from prunus.formats.pretrained import save_pretrained
from prunus.models.sources import load_model
from prunus.plan.allocation import Allocation
from prunus.runtime.calling import call, flat_outputs, outputs
from prunus.surgery.configuration import expressed

transformers: Any = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 32,
}  # fmt: skip
GPT2 = {
    "vocab_size": 50,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 160,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
CLASSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**SMALL, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**SMALL, "num_key_value_heads": 2, "head_dim": 8}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "bert": ("BertForSequenceClassification", "BertConfig", SMALL),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**SMALL, "num_key_value_heads": 1, "head_dim": 8}),
    "vit": ("ViTForImageClassification", "ViTConfig", VISION),
}


def made(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    kind, config, settings = CLASSES[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    generator = torch.Generator().manual_seed(1)
    if name == "vit":
        return model, {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    return model, {"input_ids": torch.randint(1, 50, (2, 7), generator=generator)}


def pruned(name: str, scope: Any = "uniform") -> tuple[Any, prunus.Plan, dict[str, Tensor]]:
    model, inputs = made(name)
    result = prunus.prune(model, inputs, method="l1", target=0.5, allocation=Allocation(scope=scope))
    return result.model, result.plan, inputs


@pytest.mark.parametrize("name", CLASSES)
def test_heads_and_neurons_go_and_the_class_stays(name: str, tmp_path: Path) -> None:
    model, inputs = made(name)
    smaller, plan, _ = pruned(name)
    assert type(smaller) is type(model)
    assert sum(g.heads_of is not None and len(g.kept) < g.units for g in plan.groups) == 2
    assert sum(p.numel() for p in smaller.parameters()) == plan.after.params < plan.before.params
    prunus.save(tmp_path / "artifact", smaller, plan, example_inputs=inputs)
    wanted = outputs(smaller, inputs)[0]
    assert torch.allclose(flat_outputs(call(prunus.load(tmp_path / "artifact"), inputs))[0], wanted, atol=1e-5)
    assert torch.equal(outputs(prunus.load(tmp_path / "artifact", lambda: made(name)[0]), inputs)[0], wanted)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma", "vit"])
def test_stock_from_pretrained_loads_it(name: str, tmp_path: Path) -> None:
    smaller, plan, inputs = pruned(name)
    before = smaller.config
    folder = save_pretrained(smaller, plan, tmp_path / "saved", inputs)
    again = type(smaller).from_pretrained(folder).eval()
    assert smaller.config is before
    assert torch.equal(outputs(again, inputs)[0], outputs(smaller, inputs)[0])
    assert again.config.num_attention_heads == 2
    assert again.config.intermediate_size == 32
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
def test_the_cache_changes_nothing_in_what_is_generated(name: str) -> None:
    smaller, _, inputs = pruned(name)
    assert smaller.config.use_cache
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with_cache = smaller.generate(**inputs, **options)
    assert torch.equal(with_cache, smaller.generate(**inputs, **options, use_cache=False))
    assert with_cache.shape == (2, 13)


def can_be_said(model: Any, plan: prunus.Plan) -> bool:
    try:
        expressed(model, plan)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_that_the_class_itself_writes_loads_with_the_true_widths_or_not_at_all(
    name: str, tmp_path: Path
) -> None:
    for scope in ("uniform", "global"):
        smaller, plan, inputs = pruned(name, scope)
        smaller.save_pretrained(tmp_path / scope)
        load = partial(type(smaller).from_pretrained, tmp_path / scope, ignore_mismatched_sizes=True)
        said = can_be_said(smaller, plan)
        assert said or scope == "global" or name in ("bert", "gpt2")
        if said:
            assert torch.equal(outputs(load().eval(), inputs)[0], outputs(smaller, inputs)[0])
        else:
            with pytest.raises(AttributeError, match=r"use prunus\.save and prunus\.load"):
                load()
            stored, state = load_file(tmp_path / scope / "model.safetensors"), smaller.state_dict().values()
            assert all(any(torch.equal(a, b) for b in state) for a in stored.values())  # a trainer resumes from these
        copy.deepcopy(smaller).save_pretrained(tmp_path / f"{scope} copy")
        configurations = [(tmp_path / folder / "config.json").read_text() for folder in (scope, f"{scope} copy")]
        assert configurations[0] == configurations[1]


def test_a_configuration_that_refuses_its_heads_is_a_typed_refusal() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(**{**SMALL, "hidden_size": 48, "num_attention_heads": 12})
    model, x = transformers.BertForSequenceClassification(config).eval(), {"input_ids": torch.ones(2, 5).long()}
    heads = [g.name for g in prunus.trace(model, x).groups() if g.heads_of is not None]
    result = prunus.prune(model, x, method="l1", target=dict.fromkeys(heads, 7))
    with pytest.raises(ConfigError, match="can't say what was kept"):
        expressed(result.model, result.plan)


def test_what_a_configuration_cannot_say_is_refused_and_nothing_written(tmp_path: Path) -> None:
    smaller, plan, inputs = pruned("bert")
    with pytest.raises(ConfigError, match="attention"):
        save_pretrained(smaller, plan, tmp_path / "saved", inputs)
    smaller, plan, inputs = pruned("llama")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    with pytest.raises(ArtifactError, match="not empty"):
        save_pretrained(smaller, plan, tmp_path / "full", inputs)
    with pytest.raises(ConfigError, match="no configuration"):
        save_pretrained(nn.Linear(2, 2), plan, tmp_path / "saved", inputs)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


def test_a_loaded_model_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smaller, plan, inputs = pruned("llama")
    stock = type(smaller).from_pretrained

    def damaged(folder: Path) -> Any:
        found = stock(folder)
        found.lm_head.weight.data.mul_(2)
        return found

    monkeypatch.setattr(type(smaller), "from_pretrained", damaged)
    with pytest.raises(ExportError, match="differs"):
        save_pretrained(smaller, plan, tmp_path / "saved", inputs)
    assert not list(tmp_path.iterdir())


def saved(name: str, folder: Path) -> Path:
    made(name)[0].save_pretrained(folder)  # type: ignore[operator]
    return folder


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_is_loaded_in_the_class_that_its_configuration_names(name: str, tmp_path: Path) -> None:
    model, inputs = made(name)
    loaded = load_model(f"hf:{saved(name, tmp_path / name)}")
    assert type(loaded.model) is type(model)
    assert torch.equal(outputs(loaded.model, inputs)[0], outputs(model, inputs)[0])
    assert set(loaded.example_inputs) == set(inputs)
    assert prunus.trace(loaded.model, loaded.example_inputs).groups()


def test_what_is_no_model_of_transformers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="configuration cannot be read"):
        load_model(f"hf:{tmp_path}")
    folder = saved("llama", tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["MyOwnModel"]}))
    with pytest.raises(ConfigError, match="no code from outside"):
        load_model(f"hf:{folder}")


DATA = """
import torch
from prunus.data.datasets import DataSource, next_tokens

def text():
    tokens = torch.randint(1, 50, (48, 9), generator=torch.Generator().manual_seed(0))
    part = next_tokens(tokens)
    return DataSource("tokens", part, part, part, 50)
"""


@pytest.mark.parametrize("method", ["dirichlet", "rbp"])
def test_a_language_model_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    (tmp_path / "tokens.py").write_text(DATA)
    folder, out = saved("llama", tmp_path / "llama"), tmp_path / "run"
    (folder / "tokenizer.json").write_text("{}")
    arguments = ["compress", f"hf:{folder}", "--data", f"{tmp_path}/tokens.py:text", "--method", method]
    few = ["--set", "min_steps=20"] if method == "dirichlet" else []
    short = ["--recover", "epochs=1", "--recover", "lr=0.01", "--export", "no-onnx", "--out", str(out)]
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--target", "macs<=70%", "--allocate", "scope=uniform", *few, *short])
    said = capsys.readouterr().out
    assert "test loss" in said
    assert "from_pretrained reads" in said
    assert (out / "pretrained" / "tokenizer.json").exists()
    smaller = transformers.LlamaForCausalLM.from_pretrained(out / "pretrained")
    ids = torch.randint(1, 50, (2, 5))
    loaded = prunus.load(out / "artifact")
    assert torch.allclose(smaller(ids).logits, call(loaded, {"input_ids": ids}).logits, atol=1e-5)


@pytest.mark.parametrize(("name", "layer"), [("llama", "model.layers.0.self_attn.q_proj"), ("gpt2", "c_fc")])
def test_patterns_lie_on_language_models_too(tmp_path: Path, name: str, layer: str) -> None:
    (tmp_path / "tokens.py").write_text(DATA)
    folder, out = saved(name, tmp_path / name), tmp_path / "run"
    arguments = ["compress", f"hf:{folder}", "--data", f"{tmp_path}/tokens.py:text", "--method", "dpp"]
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--target", "weight 25%", "--set", "epochs=1", "--export", "no-onnx", "--out", str(out)])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["loss"].keys() == summary["accuracy"].keys() == {"dense", "masked", "dense_test", "test"}
    assert "lm_head" not in summary["layers"]
    masks, model = load_masks(out / "artifact"), prunus.load(out / "artifact")
    found = next(n for n in masks if n.endswith(layer))
    weight = model.get_parameter(f"{found}.weight").detach()
    rows = weight.t() if name == "gpt2" else weight
    assert rows.shape == masks[found].mask.shape
    assert bool(((rows != 0).sum(1) == round(rows.shape[1] / 4)).all())


def with_tokenizer(folder: Path) -> Path:
    """A folder with a model and a tokenizer of bytes that it can read."""
    tokenizers = pytest.importorskip("tokenizers")
    made_of = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="?"))
    made_of.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=45, special_tokens=["?"], show_progress=False)
    made_of.train_from_iterator([TEXT], trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=made_of, unk_token="?").save_pretrained(folder)
    return folder


TEXT = "the plum and the cherry lose the twigs that they can spare, and keep the buds. " * 80


def test_a_text_is_data_for_a_language_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, text = with_tokenizer(saved("gpt2", tmp_path / "gpt2")), tmp_path / "plums.txt"
    text.write_text(TEXT)
    data = load_data(f"text:{text}", model=f"hf:{folder}", validation=3)
    assert (len(data.validation), data.name) == (3, "plums")
    assert data.train.inputs.shape[1] == data.train.labels.shape[1] == 128  # type: ignore[union-attr]
    assert torch.equal(data.train.inputs[1:, 0], data.train.labels[:-1, -1])  # type: ignore[index]
    parts = [p.inputs for p in (data.train, data.validation, data.test)]
    ids = transformers.AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    assert torch.cat(parts).flatten().tolist() == ids[: 128 * sum(map(len, parts))]  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="only hf: models"):
        load_data(f"text:{text}", model="mine.py:net")
    with pytest.raises(DataError, match="longer text"):
        load_data(f"text:{folder / 'config.json'}", model=f"hf:{folder}")
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", f"hf:{folder}", "--data", f"text:{text}"])
    assert "test examples" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["analyze", f"hf:{folder}", "--data", f"text:{text}"])
    assert "c_fc" in capsys.readouterr().out
    out = tmp_path / "run"
    made = ["--data", f"text:{text}", "--method", "l1", "--target", "0.3", "--recover", "none", "--export", "tokenizer"]
    with pytest.raises(SystemExit, match="0"):
        main(["compress", f"hf:{folder}", *made, "--out", str(out)])
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", str(out), "--data", f"text:{text}"])
    told = json.loads((out / "summary.json").read_text())["loss"]["test"]
    assert f"loss {told:.4f}" in capsys.readouterr().out
    shutil.rmtree(out / "artifact" / "tokenizer")
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(out / "artifact"), "--data", f"text:{text}"])
    assert "has no folder tokenizer/" in " ".join(capsys.readouterr().err.split())
