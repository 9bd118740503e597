"""Models pruned and repaired layer by layer from shards: the same as whole in memory, or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prunus
from prunus.errors import ArtifactError, BudgetError, ConfigError, DataError, TraceError
from prunus.files.shards import INDEX, ONE, Shards, ShardWriter, in_portions
from prunus.models.huggingface import from_configuration, without_parameters
from prunus.streaming.frame import recorded_calls
from prunus.streaming.layerlist import layer_list
from prunus.streaming.names import stored_names
from prunus.surgery.configuration import UNSAID

transformers: Any = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3,
    "max_position_embeddings": 64,
}  # fmt: skip
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", {**SMALL, "num_key_value_heads": 2}),
    "Qwen2": ("Qwen2ForCausalLM", {**SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "GPTNeoX": ("GPTNeoXForCausalLM", SMALL),
    "GPT2": ("GPT2LMHeadModel", {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
}
TEXTS = [(torch.randint(64, (count, 16), generator=torch.Generator().manual_seed(count)),) for count in (40, 24)]
ALL_ROWS = prunus.RepairConfig(examples=64)


def saved(folder: Path, kind: str = "Llama", *, dtype: torch.dtype = torch.float32, size: str = "20KB") -> nn.Module:
    name, settings = CLASSES[kind]
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**settings)).eval()
    for tensor in model.parameters():  # no two layers alike, and far from linear
        nn.init.normal_(tensor, 0.5 if tensor.dim() == 1 else 0.0, 0.3)
    model.to(dtype).save_pretrained(folder, max_shard_size=size)  # type: ignore[operator]
    return model


def planned(model: nn.Module, share: float = 0.75, only: str = "") -> prunus.Plan:
    """The first units of every group, so many of them."""
    graph = prunus.trace(model, TEXTS[0])
    groups = [g for g in graph.groups() if not g.inside_heads and only in g.name]
    return prunus.Plan.from_kept(graph, {g.name: range(int(g.units * share)) for g in groups if g.heads_of is None})


def loaded(folder: Path, model: nn.Module) -> nn.Module:
    made: nn.Module = type(model).from_pretrained(folder)  # type: ignore[attr-defined]
    return made.eval()


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("repair", [ALL_ROWS, False], ids=["repaired", "cut"])
def test_it_is_what_comes_of_the_whole_model(kind: str, repair: Any, tmp_path: Path) -> None:
    model = saved(tmp_path / "dense", kind)
    plan = planned(model)
    done = prunus.prune_streamed(tmp_path / "dense", tmp_path / "out", plan=plan, data=TEXTS, repair=repair)
    found = loaded(tmp_path / "out", model)
    there = prunus.repair(model, plan, TEXTS, config=repair) if repair else None
    whole = prunus.apply_(there.model if there else model, plan, TEXTS[0])
    assert done.max_error < 1e-5
    for name, tensor in whole.state_dict().items():
        if name not in ("lm_head.weight", "embed_out.weight"):  # which lies behind the layers, and stays as it is
            torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    if there:
        refits = [(r.layer, r.reason) for layer in done.layers for r in layer.refits]
        assert refits == [(r.layer, r.reason) for r in there.refits if r.layer not in ("lm_head", "embed_out")]
        assert any(not r.reason and r.after < r.before for layer in done.layers for r in layer.refits)


def test_a_target_is_met_by_one_width_for_all_layers_which_stock_transformers_loads(tmp_path: Path) -> None:
    model = saved(tmp_path / "dense", dtype=torch.bfloat16)
    done = prunus.prune_streamed(tmp_path / "dense", tmp_path / "out", target="params<=80%", data=TEXTS)
    found = loaded(tmp_path / "out", model)
    assert sum(p.numel() for p in found.parameters()) == done.plan.after.params <= 0.8 * done.plan.before.params
    kept = Shards(tmp_path / "out")
    assert set(kept.dtypes.values()) == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / INDEX).read_text())["metadata"]["total_size"] == sum(
        kept.bytes_of(n) for n in kept.files
    )
    assert len({len(k) for n, k in done.plan.kept.items() if "mlp" in n}) == 1
    assert "won back" in done.explain()
    assert repr(done).startswith("<Streamed: LlamaForCausalLM")
    in_memory = prunus.prune(
        model, TEXTS[0], method="l2", target="params<=80%", allocation=prunus.Allocation("uniform")
    )
    assert done.plan.kept == in_memory.plan.kept


def test_where_nothing_goes_the_weights_are_the_same_to_the_bit(tmp_path: Path) -> None:
    model = saved(tmp_path / "dense", dtype=torch.float16, size="1GB")
    plan = prunus.Plan.from_kept(prunus.trace(model, TEXTS[0]), {})
    done = prunus.prune_streamed(tmp_path / "dense", tmp_path / "out", plan=plan, data=TEXTS)
    before, after = Shards(tmp_path / "dense"), Shards(tmp_path / "out")
    assert before.files.keys() == after.files.keys()
    for name in before.files:
        assert torch.equal(before.read(name), after.read(name)), name
    assert [(layer.apart, layer.refits) for layer in done.layers] == [(0.0, ())] * 3


def test_neurons_that_others_stand_for_are_made_up_for_exactly(tmp_path: Path) -> None:
    """Each removed neuron is another one's double: what reads them can take its share over, through all layers."""
    model = saved(tmp_path / "dense")
    with torch.no_grad():
        for layer in model.model.layers:  # type: ignore[union-attr]
            for name in ("gate_proj", "up_proj"):
                weight = getattr(layer.mlp, name).weight
                weight[24:] = weight[:24]
    model.save_pretrained(tmp_path / "dense", max_shard_size="20KB")  # type: ignore[operator]
    graph = prunus.trace(model, TEXTS[0])
    plan = prunus.Plan.from_kept(graph, {g.name: range(24) for g in graph.groups() if "mlp" in g.name})
    ways = {"plan": plan, "data": TEXTS}
    cut = prunus.prune_streamed(tmp_path / "dense", tmp_path / "cut", repair=False, **ways)
    done = prunus.prune_streamed(tmp_path / "dense", tmp_path / "out", repair=ALL_ROWS, **ways)
    assert all(layer.apart > 1e-2 for layer in cut.layers)
    assert all(layer.apart < 1e-7 for layer in done.layers)
    first = next(r for r in done.layers[0].refits if r.layer.endswith("down_proj"))
    assert first.won_back > 1 - 1e-6


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus.streaming import walk

    saved(tmp_path / "dense")
    ways: dict[str, Any] = {"target": "params<=85%", "data": TEXTS, "repair": ALL_ROWS, "seed": 3}
    whole = prunus.prune_streamed(tmp_path / "dense", tmp_path / "whole", **ways)
    passed, numbers = walk.passed_, list[int]()

    def failing(layer: Any, listed: Any, number: int, *rest: Any) -> Any:
        numbers.append(number)
        if numbers == [0, 1]:
            raise KeyboardInterrupt
        return passed(layer, listed, number, *rest)

    monkeypatch.setattr(walk, "passed_", failing)
    with pytest.raises(KeyboardInterrupt):
        prunus.prune_streamed(tmp_path / "dense", tmp_path / "out", **ways)
    with pytest.raises(ArtifactError, match="not empty"):
        prunus.prune_streamed(tmp_path / "dense", tmp_path / "out", **ways)
    again = prunus.prune_streamed(tmp_path / "dense", tmp_path / "out", resume=True, **ways)
    assert numbers == [0, 1, 1, 2]
    assert again.layers == whole.layers
    first, second = (sorted(p.relative_to(f) for p in f.rglob("*")) for f in (tmp_path / "whole", tmp_path / "out"))
    assert first == second
    for path in first:
        assert (tmp_path / "whole" / path).read_bytes() == (tmp_path / "out" / path).read_bytes()


def test_embeddings_are_read_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved(tmp_path / "dense")
    shards, read = Shards(tmp_path / "dense"), list[str]()
    skeleton, example = from_configuration(str(tmp_path / "dense"))
    monkeypatch.setattr(Shards, "read", lambda _, name: read.append(name))
    listed, frame = layer_list(skeleton, example), without_parameters(str(tmp_path / "dense"), torch.float32)
    names = stored_names(skeleton, listed, shards)
    calls = recorded_calls(frame, listed, TEXTS, shards, names, torch.float32)
    assert read == []
    wanted = model.model.embed_tokens(TEXTS[1][0])  # type: ignore[union-attr, operator]
    assert torch.equal(calls[0][1].leaves[0], wanted)


def test_what_cannot_be_done_is_refused_before_the_work(tmp_path: Path) -> None:
    model, dense = saved(tmp_path / "dense"), tmp_path / "dense"
    plan = planned(model)

    def refused(kind: type[Exception], words: str, folder: Path = dense, **ways: Any) -> None:
        with pytest.raises(kind, match=words):
            prunus.prune_streamed(folder, tmp_path / "out", **{"plan": plan, "data": TEXTS, **ways})
        assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())

    refused(ConfigError, "needs the whole model", method="fisher")
    refused(ConfigError, "a plan says what goes", plan=None)
    refused(ConfigError, "a plan says what goes", target=0.5)
    refused(BudgetError, "reachable", plan=None, target="params<=1%")
    refused(DataError, "lengths", data=[TEXTS[0], (TEXTS[1][0][:, :9],)])
    refused(DataError, "there are none", data=[])
    refused(ConfigError, "no number of the configuration", plan=planned(model, only="layers.1.mlp"))
    other = prunus.Plan.from_kept(prunus.trace(model, TEXTS[0]), {"model.layers.0.self_attn.q_proj.heads": [0]})
    refused(ConfigError, "configuration", plan=other)
    refused(ArtifactError, "neither", folder=tmp_path)

    lacking = load_file(dense / next(p.name for p in sorted(dense.glob("*.safetensors"))))
    gone = sorted(lacking)[0]
    path = next(p for p in sorted(dense.glob("*.safetensors")) if gone in load_file(p))
    save_file({n: t for n, t in load_file(path).items() if n != gone}, path, metadata={"format": "pt"})
    refused(ArtifactError, gone)
    index = json.loads((dense / INDEX).read_text())
    del index["weight_map"][gone]
    (dense / INDEX).write_text(json.dumps(index))
    refused(ArtifactError, "no shard holds")
    path.unlink()
    refused(ArtifactError, "cannot be read")
    (dense / INDEX).unlink()
    refused(ArtifactError, "neither")


def test_a_model_without_such_a_list_is_refused(tmp_path: Path) -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for layer in reversed(self.layers):
                x = layer(x)
            return x

    class Twice(Backwards):
        def forward(self, x: Tensor) -> Tensor:
            return self.layers[1](self.layers[0](x) + 1)  # type: ignore[no-any-return]

    x = torch.randn(2, 4)
    with pytest.raises(TraceError, match="in order"):
        layer_list(Backwards(), x)
    with pytest.raises(TraceError, match="does not read what the layer before"):
        layer_list(Twice(), x)
    with pytest.raises(TraceError, match="no list"):
        layer_list(nn.Linear(4, 4), x)


def tensors() -> Iterator[tuple[str, Tensor]]:
    for name, dtype in (("a", torch.float32), ("b.c", torch.bfloat16), ("d", torch.int64)):
        yield name, torch.arange(12).reshape(4, 3).to(dtype)


def test_shards_give_back_what_was_written(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 3)
    for number, (name, tensor) in enumerate(tensors(), 1):
        writer.write(number, {name: tensor})
    writer.finish()
    shards, numbers = Shards(tmp_path), torch.tensor([[3, 0], [3, 2]])
    for name, tensor in tensors():
        assert torch.equal(shards.read(name), tensor)
        assert torch.equal(shards.rows(name, numbers), tensor[numbers])
        assert (shards.shapes[name], shards.dtypes[name]) == (tuple(tensor.shape), tensor.dtype)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(ArtifactError, match="outside"):
        Shards(tmp_path)
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        Shards(tmp_path)
    (tmp_path / INDEX).unlink()
    (tmp_path / ONE).write_bytes(b"no such file")
    with pytest.raises(ArtifactError, match="cannot be read"):
        Shards(tmp_path)


def test_portions_hold_no_more_than_they_should() -> None:
    sizes = {"a": 3, "b": 4, "c": 9, "d": 1, "e": 6}
    assert in_portions(list(sizes), sizes, 7) == [["a", "b"], ["c"], ["d", "e"]]
    assert in_portions([], sizes, 7) == []


def test_head_counts_that_transformers_refuses_to_load_are_refused(tmp_path: Path) -> None:
    settings = {**SMALL, "hidden_size": 32, "num_attention_heads": 8, "head_dim": 4, "num_key_value_heads": 8}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    model.save_pretrained(tmp_path / "dense")
    graph = prunus.trace(model, TEXTS[0])
    plan = prunus.Plan.from_kept(graph, {g.name: range(3) for g in graph.groups() if g.heads_of})
    with pytest.raises(ConfigError, match="multiple of the number of attention heads"):
        prunus.prune_streamed(tmp_path / "dense", tmp_path / "out", plan=plan, data=TEXTS)
    smaller = prunus.apply_(model, plan, TEXTS[0])
    smaller.save_pretrained(tmp_path / "smaller")  # type: ignore[operator]
    assert json.loads((tmp_path / "smaller" / "config.json").read_text())["dtype"] == UNSAID
