"""Whole heads through the pipeline: useless ones go, gates of heads and of dimensions inside them multiply."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.gates.gate import attach
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.plan.allocation import Allocation
from prunus.proof.apply import apply_and_verify_
from prunus.proof.masked import masked
from prunus.runtime.calling import outputs
from prunus.surgery.fold import fold_
from zoo_attention import HEADS, SIZE, WIDTH, Block, Fused, GroupedQueries, WidthInCode

USELESS = (1, 3)


@cache
def trained(kind: type[Block]) -> tuple[Block, list[tuple[Tensor, Tensor]]]:
    """A network that learned something, with two heads that nobody hears."""
    torch.manual_seed(0)
    x = torch.randn(512, 5, 6)
    with torch.no_grad():
        y = kind()(x).argmax(1)
    batches = list(zip(x.split(64), y.split(64), strict=True))
    model = kind()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    with torch.no_grad():
        for head in USELESS:
            model.out.weight[:, head * SIZE : (head + 1) * SIZE] *= 1e-4
    return model.eval(), batches


@pytest.mark.parametrize(
    ("kind", "method"),
    [(Block, "taylor"), (Fused, "taylor"), (Block, "fisher"), (Fused, "fisher"), (Block, DirichletPruning(epochs=40))],
)
def test_heads_that_nobody_hears_go_first(kind: type[Block], method: Any) -> None:
    model, batches = trained(kind)
    result = prunus.prune(
        model, batches[0][0], method=method, target="macs<=75%", data=batches, loss_fn=F.cross_entropy,
        allocation=Allocation(scope="global"), progress=False,
    )  # fmt: skip
    heads = next(g for g in result.plan.groups if g.heads_of is not None)
    assert set(heads.kept) == {0, 2}
    assert type(result.model) is kind
    assert result.model.num_heads == 2
    assert model.num_heads == 4


def test_dimensions_inside_heads_go_only_when_asked() -> None:
    model, batches = trained(Block)
    x = batches[0][0]
    plain = prunus.prune(model, x, method="l1", target=0.4)
    asked = prunus.prune(model, x, method="l1", target=0.4, allow=("head_dims",))
    assert {g.name for g in plain.plan.groups} == {"q.heads", "up"}
    assert {g.name for g in asked.plan.groups} == {"q.heads", "q", "v", "up"}


def test_gates_of_heads_and_of_their_dimensions_multiply() -> None:
    model, batches = trained(Block)
    x = batches[0][0]
    graph = prunus.trace(model, x)
    groups = [graph.group("q.heads"), graph.group("v")]
    torch.manual_seed(3)
    heads, dims = torch.rand(4), torch.rand(groups[1].units)
    with attach(model, groups) as gates:
        gates.fix({"q.heads": heads, "v": dims})
        gated = outputs(model, x)[0]
    with torch.no_grad():
        reference = Block()
        reference.load_state_dict(model.state_dict())
        reference.out.weight.mul_(heads.repeat_interleave(SIZE) * dims)
    assert torch.allclose(outputs(reference, x)[0], gated, atol=1e-5)
    assert not torch.allclose(outputs(model, x)[0], gated, atol=1e-2)


def test_per_example_gates_have_a_gradient_for_every_head() -> None:
    model, batches = trained(Fused)
    x, y = batches[0]
    graph = prunus.trace(model, x)
    with attach(model, [graph.group("qkv.heads")]) as gates:
        gates.probe()
        F.cross_entropy(model(x), y).backward()
        gradient = gates.probes["qkv.heads"].grad
    assert gradient is not None
    assert gradient.shape == (64, 4)
    size = gradient.abs().sum(0)
    assert float(size[list(USELESS)].max()) < 1e-2 * float(size[[0, 2]].min())
    model.zero_grad()


class OutputReadAgain(Block):
    """One layer reads the heads and then its own output, whose positions no reshape ever made rows of."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(self.stem(x))
        return self.head(self.out(F.relu(self.out(x))).mean(1))


def test_heads_stay_where_their_positions_are_those_of_another_layer() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 6)
    model = OutputReadAgain().eval()
    graph = prunus.trace(model, x)
    assert "knows nothing of whole rows" in str(graph.group("q.heads").locked)
    kept = {"stem": [0, 3, 5], "v": [0, 2, 4, 6, 8, 10, 12, 14]}
    smaller = prunus.apply_(model, prunus.Plan.from_kept(graph, kept), x)
    assert smaller.out.weight.shape == (8, 8)


class StreamAddedToHeads(Block):
    """What is attended to is added to the joined heads, without a projection: its positions go with the heads."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.attend(x)).mean(1))


def test_layers_that_read_before_there_are_heads_are_readers_of_heads() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 6)
    model = StreamAddedToHeads().eval()
    graph = prunus.trace(model, x)
    heads = graph.group("stem.heads")
    assert {r.module for r in heads.readers} == {"q", "k", "v", "head"}
    smaller = prunus.apply_(model, prunus.Plan.from_kept(graph, {"stem.heads": [0, 2]}), x)
    assert smaller.q.weight.shape == (8, 8)


@pytest.mark.parametrize("kind", [Block, Fused, GroupedQueries])
def test_multipliers_of_query_dimensions_are_folded_into_what_writes_them(kind: type[Block]) -> None:
    model, batches = trained(kind)
    x = batches[0][0]
    graph = prunus.trace(model, x)
    groups = [g for g in graph.groups() if g.inside_heads]
    assert any(r.output for g in groups for r in g.readers)
    torch.manual_seed(4)
    values = {g.name: torch.rand(g.units) + 0.2 for g in groups}
    with attach(model, groups) as gates:
        gates.fix(values)
        gated = outputs(model, x)[0]
    folded = copy.deepcopy(model)
    for group in groups:
        fold_(folded, graph, group, values[group.name])
    assert torch.allclose(outputs(folded, x)[0], gated, atol=1e-5)
    assert not torch.allclose(outputs(model, x)[0], gated, atol=1e-3)


def test_one_side_of_a_product_is_gated() -> None:
    """Queries, keys and values of a fused layer are one group: its gate multiplies queries and values, not keys."""
    model, batches = trained(Fused)
    x = batches[0][0]
    graph = prunus.trace(model, x)
    dims = graph.group("qkv")
    behind = next(r for r in dims.readers if r.output)
    assert (behind.units >= 0).tolist() == [True] * WIDTH + [False] * 2 * WIDTH
    torch.manual_seed(5)
    gate = torch.rand(dims.units)
    with attach(model, [dims]) as gates:
        gates.fix({"qkv": gate})
        gated = outputs(model, x)[0]
    reference = copy.deepcopy(model)
    with torch.no_grad():
        reference.qkv.weight[:WIDTH] *= gate[:, None]
        reference.qkv.bias[:WIDTH] *= gate
        reference.out.weight *= gate
    assert torch.allclose(outputs(reference, x)[0], gated, atol=1e-5)


def attentive(kind: type[Block], scale: float) -> Block:
    """A network whose scores are far from zero, or next to it."""
    torch.manual_seed(0)
    model = kind().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.split(".")[0] in ("q", "k", "qkv"):
                parameter.mul_(scale)
    return model


@pytest.mark.parametrize("scale", [4.0, 0.02])
def test_scores_keep_their_scale_where_code_divides_by_the_width_it_sees(scale: float) -> None:
    """`scaled_dot_product_attention` divides by the root of a narrower head: queries make up for it."""
    model, x = attentive(Fused, scale), torch.randn(4, 5, 6)
    graph = prunus.trace(model, x)
    kept = {"qkv": [u for u in range(WIDTH) if u % SIZE in (0, 3)]}
    plan = prunus.Plan.from_kept(graph, kept)
    with masked(model, plan):
        expected = outputs(model, x)[0]
        attended = outputs(nn.Sequential(model.stem, model.norm, Attended(model)), x)[0]
    pruned, proof = apply_and_verify_(copy.deepcopy(model), plan, x)
    assert type(pruned) is Fused
    assert not proof.rewritten
    assert pruned.qkv.weight.shape == (3 * WIDTH // 2, WIDTH)
    assert torch.allclose(outputs(pruned, x)[0], expected, atol=1e-5)
    now = outputs(nn.Sequential(pruned.stem, pruned.norm, Attended(pruned)), x)[0]
    assert float((now - attended[..., kept["qkv"]]).abs().max()) < 1e-5 * float(attended.abs().max())


def test_rescaled_queries_stay_tied() -> None:
    model, x = attentive(Fused, 4.0), torch.randn(4, 5, 6)
    model.spare = nn.Linear(WIDTH, 3 * WIDTH)
    model.spare.weight = model.qkv.weight
    kept = {"qkv": [u for u in range(WIDTH) if u % SIZE in (0, 3)]}
    pruned, proof = apply_and_verify_(model, prunus.Plan.from_kept(prunus.trace(model, x), kept), x)
    assert not proof.rewritten
    assert pruned.spare.weight is pruned.qkv.weight


class Attended(nn.Module):
    """What the heads of a block make, before the layer behind them."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block.attend(x)


@pytest.mark.parametrize("scale", [1.0, 0.02])
def test_a_wrong_split_into_heads_is_found_out_where_the_output_hardly_tells(scale: float) -> None:
    """Half of all dimensions would be taken for half of the heads; nearly equal scores hide that from the output."""
    model, x = attentive(WidthInCode, scale), torch.randn(4, 5, 6)
    graph = prunus.trace(model, x)
    half = [u for u in range(WIDTH) if u % SIZE < SIZE // 2]
    plan = prunus.Plan.from_kept(graph, {"q": half, "v": half})
    pruned, proof = apply_and_verify_(model, plan, x)
    assert proof.rewritten
    assert type(pruned) is not WidthInCode
    assert model.q.weight.shape == (WIDTH, WIDTH)


class AddedToQueries(Block):
    """A learned vector is added to the queries, as in Transformer-XL: no unit of theirs is zero behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(WIDTH))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x) for layer in (self.q, self.k, self.v))
        q, k, v = (t.view(*t.shape[:2], HEADS, -1).transpose(1, 2) for t in (q + self.bias, self.between(k), v))
        return (q @ k.transpose(-2, -1) * 0.5).softmax(-1).matmul(v).transpose(1, 2).flatten(2)

    def between(self, k: Tensor) -> Tensor:
        return k


class Tempered(Block):
    """Every token has a temperature of its own for each head, computed by a layer and multiplied to the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.heat = nn.Linear(WIDTH, HEADS)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return (
            F.scaled_dot_product_attention(self.heat(x).transpose(1, 2)[..., None] * q, k, v, scale=0.5)
            .transpose(1, 2)
            .flatten(2)
        )


def test_of_two_factors_the_one_that_holds_the_units_is_gated() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 6)
    model = Tempered().eval()
    graph = prunus.trace(model, x)
    assert [r.module for r in graph.group("q").readers] == ["q"]
    kept = {"q": [u for u in range(WIDTH) if u % SIZE < 3]}
    assert apply_and_verify_(model, prunus.Plan.from_kept(graph, kept), x)[1].passed


class AddedToBoth(AddedToQueries):
    def between(self, k: Tensor) -> Tensor:
        return k.exp()


def test_the_other_side_is_gated_where_something_is_added_to_one() -> None:
    x = torch.randn(4, 5, 6)
    graph = prunus.trace(AddedToQueries().eval(), x)
    assert [r.module for r in graph.group("q").readers] == ["k"]
    both = prunus.trace(AddedToBoth().eval(), x).group("q")
    assert "no gate can stand before it" in str(both.locked)
    model = attentive(AddedToQueries, 2.0)
    kept = {"q": [u for u in range(WIDTH) if u % SIZE < 3]}
    pruned, proof = apply_and_verify_(copy.deepcopy(model), prunus.Plan.from_kept(graph, kept), x)
    assert proof.passed
    assert pruned.bias.shape == (12,)
    assert not torch.allclose(outputs(model, x)[0], outputs(pruned, x)[0], atol=1e-3)


def test_recursion_takes_dimensions_before_the_heads_they_are_in() -> None:
    model, batches = trained(Block)
    method = RecursiveBayesianPruning(epochs=2, tune_epochs=0)
    result = prunus.prune(
        model, batches[0][0], method=method, target="macs<=50%", data=batches, loss_fn=F.cross_entropy,
        allow=("head_dims",), progress=False,
    )  # fmt: skip
    assert result.stages is not None
    order = [n for stage in result.stages for n in stage.groups]
    assert order.index("q") < order.index("q.heads")
    assert order.index("v") < order.index("q.heads")
    kept = {g.name: len(g.kept) for g in result.plan.groups}
    assert result.model.out.weight.shape[1] == kept["v"] * kept["q.heads"] // HEADS


@pytest.mark.parametrize(("model", "expected"), [(Block, "head"), (Fused, "head"), (GroupedQueries, "key-value group")])
def test_groups_say_what_their_units_are(model: type[Block], expected: str) -> None:
    graph = prunus.trace(model().eval(), torch.randn(2, 5, 6))
    kinds = {g.name: g.kind for g in graph.groups()}
    assert {kind for name, kind in kinds.items() if name.endswith(".heads")} == {expected}
    assert kinds["up"] == "channel"
    assert all(kinds[g.name] == "head dimension" for g in graph.groups() if g.inside_heads)
