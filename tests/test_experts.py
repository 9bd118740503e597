"""Experts: found behind a router's choice, masked by logits of minus infinity, cut, said by configurations."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import prunus
from prunus.errors import BudgetError, ConfigError, PlanError
from prunus.gates.gate import attach
from prunus.gates.routing import less_likely
from prunus.learning.routes import tokens_per_expert
from prunus.plan.cost import CostModel
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from prunus.proof.masked import masked
from prunus.reports.offers import offers_of
from prunus.reports.tables import prunability
from prunus.testing.experts import EXPERTS, NEVER, planted_experts

SMALL = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32, "use_cache": False,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
    "n_shared_experts": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 0,
}  # fmt: skip
CLASSES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 8},
    "GptOss": {"num_local_experts": 8, "num_experts_per_tok": 4, "head_dim": 8},
    "DeepseekV3": LATENT,
}


def language_model(name: str = "Mixtral", layers: int = 2) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **CLASSES[name], "num_hidden_layers": layers})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for tensor_name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dim() > 1 or "bias" in tensor_name:
            nn.init.normal_(tensor, std=0.3)
    return model


def words(rows: int = 4) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 50, (rows, 9))}


class Listed(nn.Module):
    """Experts as a list of modules, each of which is called with the tokens that chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.top_k = 6, 2
        self.router = nn.Linear(8, 6, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(6))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = torch.topk(torch.softmax(self.router(x), -1), self.top_k, dim=-1)
        made = torch.zeros_like(x)
        for number in range(self.num_experts):
            token, choice = torch.where(chosen == number)
            made = made.index_add(0, token, self.experts[number](x[token]) * weights[token, choice, None])
        result: Tensor = self.head(x + made)
        return result


def test_the_table_says_that_experts_have_to_be_asked_for() -> None:
    graph = prunus.trace(Listed().eval(), torch.randn(40, 8))
    table = Console(width=200, record=True, file=io.StringIO())
    table.print(prunability(graph))
    text = table.export_text()
    (row,) = (line for line in text.splitlines() if "--allow experts" in line)
    assert row.replace("│", " ").split()[:3] == ["experts", "6", "experts"]
    inner = sum(g.units for g in graph.groups(locked=True))
    assert f"{6 * 12} of {inner} units can go" in text
    locked = [replace(g, locked="[why]") if g.routing else g for g in graph.channel_groups]
    table.print(prunability(replace(graph, channel_groups=locked)))
    assert "locked: [why]" in table.export_text()


def half(graph: prunus.Graph) -> dict[str, list[int]]:
    """Every second expert of every layer."""
    return {g.name: list(range(0, g.units, 2)) for g in graph.experts}


@pytest.mark.parametrize("name", CLASSES)
def test_a_smaller_model_of_transformers_comes_home(name: str, tmp_path: Path) -> None:
    model, inputs = language_model(name), words()
    graph = prunus.trace(model, inputs)
    assert [g.name for g in graph.experts] == [f"model.layers.{n}.mlp.experts" for n in range(2)]
    plan = Plan.from_json(Plan.from_kept(graph, half(graph)).to_json())
    smaller = prunus.apply_(copy.deepcopy(model), plan, inputs)
    assert sum(p.numel() for p in smaller.parameters()) == plan.after.params
    smaller.save_pretrained(tmp_path)  # type: ignore[operator]
    again = type(model).from_pretrained(tmp_path).eval()  # type: ignore[attr-defined]
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(smaller.generate(**words(2) | inputs, **how), again.generate(**inputs, **how))  # type: ignore[operator]
    assert again.config.num_local_experts == 4
    assert again.config.num_experts_per_tok == model.config.num_experts_per_tok


def test_a_list_of_experts_becomes_shorter_and_numbers_follow() -> None:
    model, x = Listed().eval(), torch.randn(40, 8)
    plan = Plan.from_kept(prunus.trace(model, x), {"experts": [4, 1, 2]})
    smaller, proof = apply_and_verify_(copy.deepcopy(model), plan, x)
    assert isinstance(smaller, Listed)
    assert not proof.rewritten
    assert len(smaller.experts) == smaller.num_experts == smaller.router.out_features == 3
    assert torch.equal(smaller.experts[2][0].weight, model.experts[4][0].weight)  # type: ignore[index]
    assert sum(p.numel() for p in smaller.parameters()) == plan.after.params


def test_masked_is_a_router_without_the_removed_by_hand() -> None:
    model, x = Listed().eval(), torch.randn(40, 8)
    plan = Plan.from_kept(prunus.trace(model, x), {"experts": [0, 3, 5]})
    logits = model.router(x)
    logits[:, [1, 2, 4]] = -torch.inf
    weights, chosen = torch.topk(torch.softmax(logits, -1), 2, dim=-1)
    every = torch.stack([e(x) for e in model.experts], 1)
    made = (every.gather(1, chosen[..., None].expand(-1, -1, 8)) * weights[..., None]).sum(1)
    with torch.no_grad(), masked(model, plan):
        found = model(x)
    torch.testing.assert_close(found, model.head(x + made))


def test_fewer_experts_than_choices_leave_a_token_all_that_stay() -> None:
    model, x = Listed().eval(), torch.randn(40, 8)
    smaller, _ = apply_and_verify_(copy.deepcopy(model), Plan.from_kept(prunus.trace(model, x), {"experts": [2]}), x)
    assert smaller.top_k == 1
    torch.testing.assert_close(smaller(x), model.head(x + model.experts[2](x)))


def test_a_wrong_cut_is_seen() -> None:
    """The plan says other rows of the router than experts: the proof refuses, and the model is whole again."""
    model, x = Listed().eval(), torch.randn(40, 8)
    plan = Plan.from_kept(prunus.trace(model, x), {"experts": [0, 1, 2]})
    other = Plan.from_kept(prunus.trace(model, x), {"experts": [0, 1, 3]})
    odd = plan.__class__(**{**vars(plan), "tensors": {**plan.tensors, "router.weight": other.tensors["router.weight"]}})
    before = model(x)
    with pytest.raises(prunus.errors.SurgeryError, match="differs from the masked model"):
        apply_and_verify_(model, odd, x, rewrite_graph=False)
    assert torch.equal(model(x), before)


def test_groups_of_experts_keep_equal_numbers() -> None:
    graph = prunus.trace(language_model("DeepseekV3", layers=1), words())
    group = graph.experts[0]
    assert group.kind == "expert"
    assert group.rows is not None
    assert group.rows.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    with pytest.raises(PlanError, match="same number must stay"):
        Plan.from_kept(graph, {group.name: [0, 1, 2, 4]})
    with pytest.raises(PlanError, match="needs 4 experts"):
        Plan.from_kept(graph, {group.name: [0, 4]})
    with pytest.raises(BudgetError, match="code needs so many: ask for 'experts<=4'"):
        prunus.prune(
            language_model("DeepseekV3", layers=1), words(), method="l1", target="experts<=25%", allow=("experts",)
        )


def test_gates_at_one_and_at_zero_are_the_dense_and_the_masked_network() -> None:
    model, inputs = language_model("DeepseekV3", layers=1), words()
    graph = prunus.trace(model, inputs)
    plan = Plan.from_kept(graph, half(graph))
    gates = {g.name: torch.zeros(g.units).index_fill(0, torch.tensor(half(graph)[g.name]), 1.0) for g in graph.experts}
    with torch.no_grad(), masked(model, plan):
        wanted = model(**inputs).logits
    dense = model(**inputs).logits
    with torch.no_grad(), attach(model, graph.experts) as attached:
        assert torch.equal(model(**inputs).logits, dense)
        attached.fix(gates)
        assert torch.equal(model(**inputs).logits, wanted)
    assert torch.equal(model(**inputs).logits, dense)


def test_a_gate_multiplies_the_odds() -> None:
    x, gate = torch.randn(4, 3), torch.tensor([[0.5, 1.0, 2.0], [1.0, 0.0, 1.0]])
    odds = torch.softmax(less_likely(x, gate, -1), -1)
    by_hand = torch.softmax(x, -1) * gate.repeat_interleave(2, 0)
    torch.testing.assert_close(odds, by_hand / by_hand.sum(-1, keepdim=True))


def test_scores_by_hand() -> None:
    model, batches = planted_experts()
    x = torch.cat([b[0] for b in batches])
    probabilities = torch.softmax(model.gate(x), -1)
    weights, chosen = torch.topk(probabilities, 2, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    made = torch.einsum("nd,ked->nke", x, model.experts.down_proj).norm(dim=-1)
    wanted = torch.zeros(EXPERTS)
    share = torch.zeros(EXPERTS)
    for expert in range(EXPERTS):
        here = chosen == expert
        share[expert] = here.any(1).float().mean()
        if here.any():
            wanted[expert] = (made[:, expert, None] * weights)[here].mean()
    graph = prunus.trace(model, x)
    for method, values in (("reap", wanted), ("frequency", share)):
        kind = prunus.methods.resolve(method)
        scores = prunus.fit(model, graph.experts, kind, batches, F.cross_entropy, num_data=len(x))
        torch.testing.assert_close(scores.values["experts"], values)
    counted = tokens_per_expert(model, {"experts": ""}, {"experts": EXPERTS}, [b[0] for b in batches])["experts"]
    assert counted == tuple((share * len(x)).round().int().tolist())


@pytest.mark.parametrize("method", ["l1", "taylor", prunus.DirichletPruning(min_steps=4)])
def test_every_method_of_units_judges_experts(method: Any) -> None:
    model, batches = planted_experts()
    ways = {"data": batches, "loss_fn": F.cross_entropy, "allow": ("experts",), "progress": False}
    result = prunus.prune(model, batches[0][0], method=method, target="experts<=4", **ways)
    assert len(result.plan.kept["experts"]) == 4
    assert method == "l1" or NEVER not in result.plan.kept["experts"]


def test_prune_takes_the_same_number_of_every_layer() -> None:
    model, inputs = language_model(), words()
    ways = {"method": "reap", "data": [words(), words()], "allow": ("experts",), "progress": False}
    result = prunus.prune(model, inputs, target="experts<=50%", **ways)
    assert [len(k) for k in result.plan.kept.values()] == [4, 4]
    assert result.plan.after["experts"] == 4
    assert result.model.config.num_local_experts == 4  # type: ignore[union-attr]
    assert result.verification.passed


def test_a_budget_on_parameters_takes_experts_first_and_widths_for_the_rest() -> None:
    model, inputs = language_model(), words()
    ways = {"method": "l1", "allow": ("experts",), "progress": False}
    result = prunus.prune(model, inputs, target="params<=60%", **ways)
    assert result.plan.after.params <= 0.6 * result.plan.before.params
    assert all(len(g.kept) == g.units for g in result.plan.groups if g.experts_of is None)
    few = prunus.prune(model, inputs, target="params<=34%", **ways)
    assert few.plan.after.params <= 0.34 * few.plan.before.params
    assert {len(g.kept) for g in few.plan.groups if g.experts_of} == {2}
    assert any(len(g.kept) < g.units for g in few.plan.groups if g.experts_of is None)
    offers = offers_of(few.graph, few.plan, few.scores, None, 0)
    assert len(offers) > 1
    assert [o.kept for o in offers if o.own] == [{g.name: len(g.kept) for g in few.plan.groups}]
    assert {offer.kept[g.name] for offer in offers for g in few.graph.experts} == {2}


def test_the_expert_that_nobody_needs_goes_first() -> None:
    model, batches = planted_experts()
    ways = {"data": batches, "loss_fn": F.cross_entropy, "allow": ("experts",), "progress": False}
    result = prunus.prune(model, batches[0][0], method="reap", target={"experts": EXPERTS - 1}, **ways)
    assert NEVER not in result.plan.kept["experts"]
    torch.testing.assert_close(result.model(batches[0][0]), model(batches[0][0]))


class Choosing(nn.Module):
    """Chooses by the largest one alone, as routers of several `max` do."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).max(dim=-1, keepdim=True)
        made = sum(torch.where(chosen == n, weight * expert(x), 0.0) for n, expert in enumerate(self.experts))
        result: Tensor = self.head(x + made)
        return result


def test_a_router_may_choose_by_the_largest() -> None:
    model, x = Choosing().eval(), torch.randn(40, 8)
    graph = prunus.trace(model, x)
    assert [(g.name, g.routing.choices) for g in graph.experts if g.routing] == [("experts", 1)]
    smaller, _ = apply_and_verify_(copy.deepcopy(model), Plan.from_kept(graph, {"experts": [1, 3]}), x)
    assert len(smaller.experts) == 2  # type: ignore[arg-type]


def test_repair_finds_weights_that_make_up_for_what_went() -> None:
    """Kept alone, expert 2 has to stand for two maps by turns: the best is the least-squares solution by hand."""
    model, batches = planted_experts()
    x = torch.cat([b[0] for b in batches])
    graph = prunus.trace(model, x)
    plan = Plan.from_kept(graph, {"experts": [2]})
    layers = prunus.RepairConfig(held_out=1, layers="readers")
    done = prunus.repair(model, plan, [(b[0],) for b in batches], config=layers, progress=False)
    wanted: list[Tensor] = []
    with model.experts.register_forward_hook(lambda _, args, out: wanted.append(out)), torch.no_grad():
        model(x)
    by_hand = torch.linalg.lstsq(x.double(), wanted[0].double()).solution
    found = done.model.experts.down_proj[2].T.double()  # type: ignore[index, union-attr]
    torch.testing.assert_close(found, by_hand, rtol=1e-3, atol=1e-3)
    assert torch.equal(done.model.experts.down_proj[:2], model.experts.down_proj[:2])  # type: ignore[index, union-attr]
    assert done.refits[0].layer == "experts"


@pytest.mark.parametrize(("name", "dtype"), [("Mixtral", torch.bfloat16), ("GptOss", torch.float32)])
def test_repair_brings_a_language_model_nearer(name: str, dtype: torch.dtype) -> None:
    model, inputs = language_model(name, layers=1).to(dtype), words()
    graph = prunus.trace(model, inputs)
    plan, data, unseen = Plan.from_kept(graph, half(graph)), [words(64)], words(32)
    done = prunus.repair(model, plan, data, progress=False)
    banks = [r for r in done.refits if r.layer.endswith("experts")]
    assert [r.layer for r in banks] == ["model.layers.0.mlp.experts"]
    assert all(r.after < r.before for r in banks)
    with torch.no_grad():
        dense = model(**unseen).logits
        once = prunus.apply_(copy.deepcopy(model), plan, inputs)(**unseen).logits
        repaired = prunus.apply_(done.model, plan, inputs)(**unseen).logits
    assert (repaired - dense).square().mean() < (once - dense).square().mean()


def test_the_load_is_told_before_and_after() -> None:
    model, batches = planted_experts()
    ways = {"data": batches, "loss_fn": F.cross_entropy, "allow": ("experts",), "progress": False}
    result = prunus.prune(model, batches[0][0], method="frequency", target="experts<=4", **ways)
    (load,) = result.loads
    tokens = sum(len(b[0]) for b in batches)
    assert sum(load.before) == sum(load.after) == 2 * tokens
    assert load.before[NEVER] == 0
    assert (
        load.kept == result.plan.kept["experts"] == tuple(sorted(sorted(range(6), key=lambda e: -load.before[e])[:4]))
    )
    assert "of the choices were of experts that went" in result.explain()


def test_refusals_come_before_the_work() -> None:
    model, data = planted_experts()
    inputs = data[0][0]
    plain, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    with pytest.raises(ConfigError, match="no router that chooses"):
        prunus.prune(plain, x, method="l1", target="macs<=50%", allow=("experts",))
    judged: dict[str, Any] = {"data": data, "loss_fn": F.cross_entropy, "method": "reap"}
    with pytest.raises(ConfigError, match="judges experts alone"):
        prunus.prune(model, inputs, target="experts<=50%", **judged)
    with pytest.raises(ConfigError, match="says nothing of experts"):
        prunus.prune(model, inputs, method="l1", target=0.5, allow=("experts",))
    for target in ("experts<=50%", {"experts": 4}):
        with pytest.raises(ConfigError, match=r"only if asked for\n.*--allow experts"):
            prunus.prune(model, inputs, method="l1", target=target)
    with pytest.raises(ConfigError, match="no router that chooses"):
        prunus.prune(plain, x, method="l1", target="experts<=50%")
    with pytest.raises(ConfigError, match="share no budget"):
        prunus.prune(model, inputs, method="l1", target="params<=50%", allow=("experts", "blocks"))
    with pytest.raises(BudgetError, match="with 2 experts in a layer"):
        prunus.prune(model, inputs, target="params<=10%", allow=("experts",), **judged)
    with pytest.raises(ConfigError, match="no use for it"):
        prunus.prune(model, inputs, target="params<=50%", allow=("experts",), **{**judged, "method": "rbp"})


def test_a_token_is_multiplied_with_the_experts_that_it_is_given() -> None:
    """Lists, whose products depend on data, and tensors of slices cost the same, and what is left as many again."""
    model, x = Listed().eval(), torch.randn(40, 8)
    graph = prunus.trace(model, x)
    each = 8 * 12 + 12 * 8
    assert prunus.count_cost(graph).macs == 8 * 6 + 2 * each + 8 * 3
    costs = CostModel(graph)
    for kept, given in ((5, 2), (2, 2), (1, 1)):
        assert costs.at(costs.counts({"experts": kept})).macs == 8 * kept + given * each + 8 * 3
        plan = Plan.from_kept(graph, {"experts": list(range(kept))})
        smaller = prunus.apply_(copy.deepcopy(model), plan, x)
        assert plan.after.macs == 8 * kept + given * each + 8 * 3 == prunus.count_cost(prunus.trace(smaller, x)).macs


@pytest.mark.parametrize("name", CLASSES)
def test_work_of_experts_in_one_tensor_is_counted(name: str) -> None:
    model, inputs = language_model(name, layers=1), words()
    graph = prunus.trace(model, inputs)
    (group,) = graph.experts
    assert group.routing is not None
    slices = [t for n, t in model.named_parameters() if n.startswith(group.name) and t.dim() == 3]
    by_hand = 9 * group.routing.choices * sum(t[0].numel() for t in slices)
    counted = CostModel(replace(graph, contractions=[c for c in graph.contractions if c.experts])).dense()  # type: ignore[arg-type]
    assert counted.macs == by_hand > 0
    assert counted.weights == sum(t.numel() for t in slices)


def test_a_bound_on_macs_takes_widths_alone() -> None:
    model, inputs = language_model(layers=1), words()
    ways = {"allow": ("experts",), "progress": False}
    result = prunus.prune(model, inputs, method="l1", target="macs<=90%", **ways)
    assert result.plan.after["experts"] == 8
    assert result.plan.after.macs <= 0.9 * result.plan.before.macs
    assert any("all experts stay" in note for note in result.plan.notes)
    with pytest.raises(BudgetError, match="a token is given as many"):
        prunus.prune(model, inputs, method="reap", data=[words()], target="macs<=50%", **ways)


def test_blocks_and_experts_go_by_hand_in_one_call(tmp_path: Path) -> None:
    model, inputs = language_model(layers=3), words()
    target = {"model.layers.1": 0, "model.layers.0.mlp.experts": 4, "model.layers.2.mlp.experts": 4}
    smaller = prunus.prune(
        model, inputs, method="l1", target=target, allow=("blocks", "experts"), repair=False, progress=False
    ).model
    smaller.save_pretrained(tmp_path)  # type: ignore[operator]
    again = type(model).from_pretrained(tmp_path).eval()  # type: ignore[attr-defined]
    assert (again.config.num_hidden_layers, again.config.num_local_experts) == (2, 4)
    assert torch.equal(again(**inputs).logits, smaller(**inputs).logits)
