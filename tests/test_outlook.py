"""Models without weights: made of a configuration, analysed on `meta`, and what each target would leave of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.cli.app import main
from prunus.errors import BudgetError, ConfigError, TraceError
from prunus.models.sources import load_model
from prunus.plan.cost import CostModel
from prunus.plan.outlook import SHARES, outlook

LLAMA = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 512, "max_position_embeddings": 64,
}  # fmt: skip


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def test_every_target_is_met_by_one_share_of_all_groups_and_costs_what_it_says() -> None:
    graph = prunus.trace(net(), torch.randn(2, 8))
    found = outlook(graph, graph.groups())
    assert [p.target for p in found] == [f"macs<={100 * share:g}%" for share in SHARES]
    dense = CostModel(graph).dense()
    for prospect, share in zip(found, SHARES, strict=True):
        assert prospect.cost is not None
        assert prospect.cost.macs <= share * dense.macs
        assert len(set(prospect.kept.values())) == 1
        plan = prunus.Plan.from_kept(graph, {n: list(range(k)) for n, k in prospect.kept.items()})
        assert plan.after == prospect.cost
    kept = [p.kept["0"] for p in found]
    assert kept == sorted(kept, reverse=True)


def test_what_cannot_be_reached_says_why() -> None:
    graph = prunus.trace(net(), torch.randn(2, 8))
    (found,) = outlook(graph, graph.groups()[:1], resource="params", shares=[0.01])
    assert found.cost is None
    assert "smallest reachable params" in found.refusal
    with pytest.raises(ConfigError, match="measured"):
        outlook(graph, graph.groups(), resource="latency")
    with pytest.raises(BudgetError, match="no group"):
        outlook(graph, [])


class Asking(nn.Module):
    """Asks its input for a number, and where it is captured does not."""

    def __init__(self, anyway: bool = False) -> None:
        super().__init__()
        self.net, self.anyway = net(), anyway

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0
        fake = isinstance(x, torch._subclasses.FakeTensor)
        if (self.anyway or not (fake or torch.compiler.is_exporting())) and bool((x > 0).all()):
            return torch.zeros(1)
        return self.net(x)  # type: ignore[no-any-return]


def test_a_model_on_meta_that_asks_for_numbers_is_analysed_as_it_is_captured() -> None:
    with torch.device("meta"):
        model, asking, x = Asking(), Asking(anyway=True), torch.randn(2, 8)
    graph = prunus.trace(model, x)
    assert [g.units for g in graph.groups()] == [64, 64]
    assert all(p.device.type == "meta" for p in model.parameters())
    with pytest.raises(TraceError):
        prunus.trace(asking, x)


def config(folder: Path, **more: Any) -> Path:
    transformers = pytest.importorskip("transformers")
    made = transformers.LlamaConfig(**LLAMA, architectures=["LlamaForCausalLM"], dtype="bfloat16", **more)
    made.save_pretrained(folder)
    return folder


def test_a_configuration_alone_is_a_model_without_memory(tmp_path: Path) -> None:
    folder = config(tmp_path / "llama")
    for spec in (f"hf-config:{folder}", f"hf-config:{folder / 'config.json'}"):
        made = load_model(spec)
        assert type(made.model).__name__ == "LlamaForCausalLM"
        tensors = [*made.model.parameters(), *made.example_inputs.values()]
        assert all(t.device.type == "meta" for t in tensors)
        assert {p.dtype for p in made.model.parameters()} == {torch.bfloat16}
    graph = prunus.trace(made.model, made.example_inputs)
    transformers = pytest.importorskip("transformers")
    real = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).eval()
    wanted = prunus.trace(real, {"input_ids": torch.ones(2, 16, dtype=torch.long)})
    assert {g.name: (g.units, g.locked is None) for g in graph.groups()} == {
        g.name: (g.units, g.locked is None) for g in wanted.groups()
    }
    assert prunus.count_cost(graph) == prunus.count_cost(wanted)
    with pytest.raises(ConfigError, match="without values"):
        prunus.prune(made.model, made.example_inputs, method="l1", target=0.5)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_model(f"hf-config:{tmp_path / 'nothing'}")


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = config(tmp_path / "llama")
    with pytest.raises(SystemExit, match="0"):
        main(["analyze", f"hf-config:{folder}", "--costs", "params", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["bytes_of_a_parameter"] == 2
    assert [t["target"] for t in told["targets"]] == [f"params<={100 * share:g}%" for share in SHARES]
    reached = [t for t in told["targets"] if t["cost"]]
    assert reached
    for target in reached:
        assert target["cost"]["params"] <= float(target["target"][8:-1]) / 100 * told["cost"]["params"]
    with pytest.raises(SystemExit, match="0"):
        main(["analyze", f"hf-config:{folder}", "--costs", "macs"])
    assert "macs<=90%" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["analyze", f"hf-config:{folder}", "--costs", "latency"])


def test_whole_experts_are_counted_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    settings = {**LLAMA, "intermediate_size": 32, "moe_intermediate_size": 32, "num_experts": 8, "head_dim": 8}
    kind = {"architectures": ["Qwen3MoeForCausalLM"], "dtype": "bfloat16", "num_experts_per_tok": 2}
    transformers.Qwen3MoeConfig(**settings, **kind).save_pretrained(tmp_path)
    told = []
    for more in ([], ["--experts"]):
        with pytest.raises(SystemExit, match="0"):
            main(["analyze", f"hf-config:{tmp_path}", "--costs", "params", "--json", *more])
        told.append(json.loads(capsys.readouterr().out)["targets"][4])  # half
    assert told[0]["cost"] is None
    assert [kept for name, kept in told[1]["kept"].items() if "heads" not in name] == [4, 4]
