"""Blocks: found from residual sums, out of the class or the graph, proven, chosen together with widths."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import prunus
from prunus.errors import BudgetError, ConfigError, PlanError, PruneError, SurgeryError
from prunus.graph.shallower import without_blocks
from prunus.layers.standins import ReturnsInput, ReturnsZeros
from prunus.learning.depth import depths
from prunus.learning.findings import Scores
from prunus.plan.cost import CostModel
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from prunus.proof.masked import masked
from prunus.reports.offers import offers_of
from prunus.reports.record import record_of
from prunus.reports.tables import prunability
from prunus.surgery.rewrite import rewrite
from zoo import ZOO
from zoo_nets import BasicBlock, ConvNeXtBlock, Net, cbr, head, seq

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 60}


def resnet(blocks: int = 3) -> nn.Module:
    return seq(cbr(3, 8), *(BasicBlock(8, 8, 1, "a") for _ in range(blocks)), BasicBlock(8, 16, 2, "a"), head(16))


def llama(layers: int = 3) -> nn.Module:
    config = transformers.LlamaConfig(**SMALL, num_hidden_layers=layers, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config).eval()


def bert() -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**SMALL, num_hidden_layers=2)).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def words() -> dict[str, Any]:
    return {"input_ids": torch.randint(60, (2, 7)), "use_cache": False}


def outcome(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return found if isinstance(found, Tensor) else found[0]


def untidy(model: nn.Module) -> nn.Module:
    """Batch norms far from neutral, so that a block does something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    return model.eval()


def test_blocks_of_a_resnet_are_those_of_equal_shape() -> None:
    graph = prunus.trace(resnet(), images())
    assert [b.name for b in graph.blocks.free] == ["1", "2", "3"]


@pytest.mark.parametrize("order", [("1", "2", "3"), ("3", "1", "2")])
def test_of_blocks_that_lose_nothing_but_rounding_the_first_goes(
    monkeypatch: pytest.MonkeyPatch, order: tuple[str, ...]
) -> None:
    losses = {(): 1.0, order[:1]: 1.0 + 3e-8, order[1:2]: 1.0 - 2e-8, order[2:]: 1.0 - 6e-8}
    monkeypatch.setattr(
        "prunus.learning.depth.plan_loss", lambda _, plan, *__: losses.get(tuple(plan.blocks), 1.0 + 1e-8)
    )
    model, x = untidy(resnet()), images()
    found = depths(model, prunus.trace(model, x), order, [], F.cross_entropy, lambda _: False)
    assert [d.blocks for d in found] == [order[:n] for n in range(4)]


def test_parts_and_whole_layers_of_a_transformer_are_blocks() -> None:
    graph = prunus.trace(llama(2), words())
    names = [b.name for b in graph.blocks.free]
    assert names == [f"model.layers.{i}{part}" for i in (0, 1) for part in (".self_attn", ".mlp", "")]
    whole = graph.blocks.find("model.layers.1")
    assert whole is not None
    assert len(whole.sums) == 2
    assert graph.blocks.inner(["model.layers.1"]) == set(names[3:])


def plain(net: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> nn.Module:
    return Net(net, **layers).eval()


def locked_because(model: nn.Module, inputs: Tensor) -> str:
    (block,) = prunus.trace(model, inputs).blocks.units
    assert block.locked is not None
    with pytest.raises(PlanError, match="locked"):
        Plan.from_kept(prunus.trace(model, inputs), {block.name: ()})
    return block.locked


def test_a_branch_that_is_read_twice_is_refused() -> None:
    def twice(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        branch = m.g(x)
        return m.out((x + branch) * branch.mean())

    net = plain(twice, stem=nn.Linear(6, 8), g=nn.Linear(8, 8), out=nn.Linear(8, 4))
    assert "read elsewhere too" in locked_because(net, torch.randn(2, 6))


def test_a_branch_that_is_an_output_is_refused() -> None:
    net = plain(lambda m, x: (x + (branch := m.f(x)), branch), f=nn.Linear(6, 6))  # type: ignore[arg-type, return-value]
    assert "is an output of the model" in locked_because(net, torch.randn(2, 6))


def test_a_branch_that_shares_its_weight_is_refused() -> None:
    net = plain(lambda m, x: m.out(m.f(x + m.f(m.act(x)))), f=nn.Linear(6, 6), act=nn.Tanh(), out=nn.Linear(6, 3))
    assert "used elsewhere too" in locked_because(net, torch.randn(2, 6))


def test_a_skip_that_is_written_to_stays_as_it_is_read() -> None:
    def net(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.out(F.relu_(x + m.f(F.relu_(x))))

    model, x = plain(net, a=nn.Linear(6, 6), f=nn.Linear(6, 6), out=nn.Linear(6, 3)), torch.randn(5, 6)
    (block,) = prunus.trace(model, x).blocks.free
    smaller = prunus.apply_(copy.deepcopy(model), Plan.from_kept(prunus.trace(model, x), {block.name: ()}), x)
    assert torch.allclose(smaller(x), model.out(F.relu(model.a(x))), atol=1e-6)  # type: ignore[operator, union-attr]


def test_a_branch_without_a_module_is_refused() -> None:
    def net(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.out(x + torch.tanh(x) @ x.transpose(0, 1) @ x)

    model = plain(net, stem=nn.Linear(6, 8), out=nn.Linear(8, 4))
    assert "no module makes" in locked_because(model, torch.randn(2, 6))


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: untidy(resnet()), images),
        (lambda: seq(cbr(3, 8), ConvNeXtBlock(8), ConvNeXtBlock(8), head(8)).eval(), images),
        (lambda: llama(2), words),
        (bert, lambda: {"input_ids": torch.randint(60, (2, 7))}),
    ],
    ids=["resnet", "convnext", "llama", "bert"],
)
def test_every_block_goes_in_its_own_class(make: Callable[[], nn.Module], inputs: Callable[[], Any]) -> None:
    model, x = make(), inputs()
    graph = prunus.trace(model, x)
    assert len(graph.blocks.free) > 1
    for block in graph.blocks.free[:3]:  # the others are like these
        plan = Plan.from_json(Plan.from_kept(graph, {block.name: ()}).to_json())
        smaller, proof = apply_and_verify_(copy.deepcopy(model), plan, x)
        with masked(model, plan):
            wanted = outcome(model, x)
        assert not proof.rewritten
        assert type(smaller) is type(model)
        assert torch.allclose(outcome(smaller, x), wanted, atol=1e-5)
        assert not torch.allclose(outcome(model, x), wanted, atol=1e-3)
        assert sum(p.numel() for p in smaller.parameters()) == plan.after.params < plan.before.params
        assert prunus.count_cost(prunus.trace(smaller, x)).macs == plan.after.macs < plan.before.macs


@pytest.mark.parametrize(
    "name", ["heads_fused", "residual_option_b", "layer_scale", "weight_norm_vocoder", "c2f_chunk"]
)
def test_the_graph_without_a_block_computes_the_same(name: str) -> None:
    animal = ZOO[name]
    model, x = animal.make(), animal.inputs(3)
    graph = prunus.trace(model, x)
    for block in graph.blocks.free:
        plan = Plan.from_kept(graph, {block.name: ()})
        smaller = rewrite(model, plan, x).eval()
        with masked(model, plan):
            wanted = outcome(model, x)
        assert torch.allclose(outcome(smaller, x), wanted, atol=1e-5), block.name
        assert sum(p.numel() for p in smaller.parameters()) == plan.after.params


def test_several_sums_in_a_row_leave_the_graph() -> None:
    model, x = untidy(resnet()), images()
    for name in ("1", "2"):
        model.get_submodule(name).forward = _residual_alone(model.get_submodule(name))  # type: ignore[method-assign]
    graph = prunus.trace(model, x)
    plan = Plan.from_kept(graph, dict.fromkeys((b.name for b in graph.blocks.free[:2]), ()))
    with masked(model, plan):
        wanted = outcome(model, x)
    assert torch.allclose(outcome(rewrite(model, plan, x).eval(), x), wanted, atol=1e-5)


def _residual_alone(block: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: x + block.bn2(block.conv2(F.relu(block.conv1(x))))


def test_a_wrong_removal_is_rolled_back() -> None:
    model, x = untidy(resnet()), images()
    plan = Plan.from_kept(prunus.trace(model, x), {"1": ()})
    wrong = copy.deepcopy(model)
    wrong[1].forward = lambda x: F.relu(2 * x + wrong[1].bn2(wrong[1].conv2(x)))  # type: ignore[index, method-assign, operator]
    before = outcome(wrong, x)
    with pytest.raises(SurgeryError, match="differs from the masked model"):
        prunus.apply_(wrong, plan, x, rewrite_graph=False)
    assert torch.equal(outcome(wrong, x), before)
    assert type(wrong[1]) is BasicBlock


def test_blocks_and_widths_go_together() -> None:
    model, x = untidy(resnet()), images()
    graph = prunus.trace(model, x)
    inside = {g.name: range(4) for g in graph.groups() if g.name.endswith("conv1")}
    plan = Plan.from_kept(graph, {"2": (), **{n: k for n, k in inside.items() if not n.startswith("2.")}})
    smaller, proof = apply_and_verify_(copy.deepcopy(model), plan, x)
    assert not proof.rewritten
    assert proof.max_error < 1e-5
    assert isinstance(smaller[2], ReturnsInput)
    assert smaller[1].conv1.out_channels == 4
    assert sum(p.numel() for p in smaller.parameters()) == plan.after.params
    with pytest.raises(PlanError, match="goes with a block"):
        Plan.from_kept(graph, {"2": (), "2.conv1": range(4)})


def test_blocks_inside_blocks_go_with_them() -> None:
    model, x = llama(3), words()
    graph = prunus.trace(model, x)
    with pytest.raises(PlanError, match="it goes with another"):
        Plan.from_kept(graph, {"model.layers.1": (), "model.layers.1.mlp": ()})
    both = Plan.from_kept(graph, {"model.layers.1.self_attn": (), "model.layers.1.mlp": ()})
    whole = Plan.from_kept(graph, {"model.layers.1": ()})
    assert both.removal == whole.removal
    assert both.after == whole.after


def test_a_layer_of_a_llama_leaves_its_list_and_generates(tmp_path: Path) -> None:
    model, x = llama(3), words()
    plan = Plan.from_kept(prunus.trace(model, x), {"model.layers.0": ()})
    with masked(model, plan):
        wanted = outcome(model, x)
    smaller: Any = prunus.apply_(model, plan, x)
    assert len(smaller.model.layers) == smaller.config.num_hidden_layers == 2
    assert [layer.self_attn.layer_idx for layer in smaller.model.layers] == [0, 1]
    tokens = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    cached = smaller.generate(x["input_ids"], use_cache=True, **tokens)
    assert torch.equal(cached, smaller.generate(x["input_ids"], use_cache=False, **tokens))
    prunus.save_pretrained(smaller, plan, tmp_path / "stock", x)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "stock").eval()
    assert torch.allclose(outcome(again, x), wanted, atol=1e-5)
    prunus.save(tmp_path / "artifact", smaller, plan, example_inputs=x)
    for loaded in (prunus.load(tmp_path / "artifact", lambda: llama(3)), prunus.load(tmp_path / "artifact")):
        assert torch.allclose(outcome(loaded, x), wanted, atol=1e-5)


def test_a_llama_without_one_attention_generates() -> None:
    model, x = llama(3), words()
    plan = Plan.from_kept(prunus.trace(model, x), {"model.layers.0.self_attn": ()})
    smaller: Any = prunus.apply_(model, plan, x)
    assert isinstance(smaller.model.layers[0].self_attn, ReturnsZeros)
    tokens = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    cached = smaller.generate(x["input_ids"], use_cache=True, **tokens)
    assert torch.equal(cached, smaller.generate(x["input_ids"], use_cache=False, **tokens))


def test_prune_takes_out_blocks_that_do_nothing() -> None:
    torch.manual_seed(0)
    model: Any = untidy(resnet(4))
    with torch.no_grad():
        model[6][2].weight.mul_(20)
        for number in (2, 3):
            model[number].bn2.weight.zero_()
            model[number].bn2.bias.zero_()
    batches = [(torch.randn(16, 3, 8, 8),) for _ in range(3)]
    ways: dict[str, Any] = {"data": batches, "progress": False, "method": "taylor", "allow": ("blocks",)}
    result = prunus.prune(model, images(), target="macs<=60%", **ways)
    first, _, third = result.scores.depths[:3]
    assert set(third.blocks) == {"2", "3"}
    assert third.loss == pytest.approx(first.loss, abs=1e-5)
    assert set(result.plan.blocks) == {"2", "3"}
    assert result.plan.after.macs <= 0.6 * result.plan.before.macs
    assert prunus.count_cost(prunus.trace(result.model, images())).macs == result.plan.after.macs
    x = torch.randn(8, 3, 8, 8)
    assert torch.allclose(outcome(result.model.eval(), x), outcome(model, x), atol=1e-4)


def test_blocks_make_budgets_possible_that_widths_cannot_meet() -> None:
    model, batches = untidy(resnet(3)), [(torch.randn(16, 3, 8, 8),) for _ in range(2)]
    ignored = {"ignored_layers": ["0.0"], "allocation": prunus.Allocation(floor=0.9)}
    ways: dict[str, Any] = {"data": batches, "progress": False, "method": "l1", "repair": False, **ignored}
    with pytest.raises(BudgetError):
        prunus.prune(model, images(), target="macs<=60%", **ways)
    result = prunus.prune(model, images(), target="macs<=60%", allow=("blocks", "own_class"), **ways)
    assert result.plan.blocks
    assert result.plan.after.macs <= 0.6 * result.plan.before.macs


def test_requests_for_blocks_are_refused_before_the_work() -> None:
    model, x = untidy(resnet()), images()
    ways: dict[str, Any] = {"method": "l1", "progress": False}
    with pytest.raises(ConfigError, match="data"):
        prunus.prune(model, x, target="macs<=50%", allow=("blocks",), **ways)
    with pytest.raises(ConfigError, match="a fraction of the units"):
        prunus.prune(model, x, target=0.5, allow=("blocks",), **ways)
    with pytest.raises(BudgetError, match="neither 0 nor 1"):
        prunus.prune(model, x, target={"1": 3}, allow=("blocks",), **ways)
    with pytest.raises(PruneError, match="no prunable group"):
        prunus.prune(model, x, target={"1": 0}, **ways)
    result = prunus.prune(model, x, target={"1": 0, "2.conv1": 4}, allow=("blocks",), **ways)
    assert result.plan.blocks == ("1",)
    assert len(result.plan.kept["2.conv1"]) == 4


def test_repair_leaves_alone_what_goes() -> None:
    model = llama(2)
    plan = Plan.from_kept(prunus.trace(model, words()), {"model.layers.0.mlp": ()})
    batches = [{"input_ids": torch.randint(60, (16, 7)), "use_cache": False} for _ in range(2)]
    done = prunus.repair(model, plan, batches, progress=False)
    assert {r.layer for r in done.refits} >= {"model.layers.1.mlp.down_proj"}
    assert not any(r.layer.startswith("model.layers.0.mlp") for r in done.refits)


def test_an_optimiser_goes_on_without_the_layers_that_went() -> None:
    model, x = llama(3), words()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(**x).logits.square().mean().backward()
    optimizer.step()
    plan = Plan.from_kept(prunus.trace(model, x), {"model.layers.1": (), "model.layers.2.mlp.gate_proj": range(24)})
    smaller: Any = prunus.apply_(copy.deepcopy(model), plan, x)
    carried = prunus.carry_optimizer(optimizer, model, smaller, plan)
    assert len(carried.param_groups[0]["params"]) == len(list(smaller.parameters()))
    down = carried.state[smaller.model.layers[1].mlp.down_proj.weight]["exp_avg"]
    whole = optimizer.state[model.get_parameter("model.layers.2.mlp.down_proj.weight")]["exp_avg"]
    assert torch.equal(down, whole[:, :24])


def test_repair_makes_up_for_a_block_in_layers_behind() -> None:
    model = untidy(resnet(3))
    plan = Plan.from_kept(prunus.trace(model, images()), {"1": ()})
    batches = [(torch.randn(32, 3, 8, 8),) for _ in range(4)]
    done = prunus.repair(model, plan, batches, progress=False)
    assert done.refits
    assert not any(r.layer.startswith("1.") for r in done.refits)
    x = torch.randn(64, 3, 8, 8)
    dense = outcome(model, x)
    left = [outcome(prunus.apply_(copy.deepcopy(m), plan, images()), x) for m in (model, done.model)]
    before, after = ((y - dense).square().mean() for y in left)
    assert after < before


def test_reports_say_which_blocks_went(tmp_path: Path) -> None:
    net = untidy(resnet())
    graph = prunus.trace(net, images())
    names = [block.name for block in graph.blocks.free]
    kept = {names[0]: (), **{g.name: tuple(range(g.units - 2)) for g in graph.groups() if not g.name.startswith("1.")}}
    plan = Plan.from_kept(graph, kept)
    line = next(line for line in plan.explain().splitlines() if line.startswith(names[0]))
    assert line.split()[1:3] == ["block", "goes"]
    record = record_of(graph, plan, Scores({g.name: torch.arange(float(g.units)) for g in graph.groups()}))
    widths = {step.name: (step.before, step.left) for step in record.steps if step.kind == "layer"}
    gone = {name for name, (_, left) in widths.items() if left == 0}
    assert gone == {t.rpartition(".")[0] for t in plan.removal.tensors if t.rpartition(".")[0] in widths}
    assert gone
    offers = offers_of(graph, plan, Scores({g.name: torch.arange(float(g.units)) for g in graph.groups()}), None, 0)
    assert all(names[0] not in offer.kept for offer in offers)
    without = CostModel(without_blocks(graph, names[:1])).dense().macs
    assert max(offer.macs for offer in offers) <= without
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(prunability(graph))
    lines = [line.replace("│", " ").split() for line in console.export_text().splitlines() if "--allow" in line]
    saved = [CostModel(graph).dense().macs - CostModel(without_blocks(graph, [n])).dense().macs for n in names]
    assert [line[:3] for line in lines] == [[n, "block", f"{s:,}"] for n, s in zip(names, saved, strict=True)]
