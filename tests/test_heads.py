"""Whole heads through the pipeline: useless ones go, gates of heads and of dimensions inside them multiply."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import prunus
from prunus.budget import Allocation
from prunus.gate import attach
from prunus.methods.dirichlet import DirichletPruning
from prunus.verify import outputs
from zoo_attention import SIZE, Block, Fused

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
        model, batches[0][0], method=method, budget="macs<=75%", data=batches, loss_fn=F.cross_entropy,
        allocation=Allocation(), progress=False,
    )  # fmt: skip
    heads = next(g for g in result.plan.groups if g.heads_of is not None)
    assert set(heads.kept) == {0, 2}
    assert type(result.model) is kind
    assert result.model.num_heads == 2
    assert model.num_heads == 4


def test_dimensions_inside_heads_go_only_when_asked() -> None:
    model, batches = trained(Block)
    x = batches[0][0]
    plain = prunus.prune(model, x, method="l1", pruning_ratio=0.4)
    asked = prunus.prune(model, x, method="l1", pruning_ratio=0.4, head_dims=True)
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
