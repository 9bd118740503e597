"""Graphs with rewritten sizes: heads merged with the batch, sizes in attributes of any name, pickles, layers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import DataError
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from prunus.surgery.rewrite import rewrite
from prunus.surgery.rewritten import RewrittenModel
from zoo import ZOO

SIZE, HEADS, WIDTH = 4, 4, 16
Attend = Callable[["Merged", Tensor, Tensor, Tensor], Tensor]


class Merged(nn.Module):
    """Attention whose number of heads has a name that nobody knows, written in one of many ways."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.h = HEADS
        self.stem, self.q, self.k, self.v = nn.Linear(6, WIDTH), *(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.head, self.attend = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3), attend

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(self.out(self.attend(self, self.q(x), self.k(x), self.v(x)))))


def mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v


def stacked(m: Merged, *qkv: Tensor) -> Tensor:
    b, n, _ = qkv[0].shape
    q, k, v = torch.stack([t.view(b, n, m.h, -1).transpose(1, 2) for t in qkv]).reshape(3, b * m.h, n, -1).unbind(0)
    return mixed(q, k, v).reshape(b, m.h, n, -1).transpose(1, 2).reshape(b, n, -1)


def heads_back_from_the_batch(m: Merged, *qkv: Tensor) -> Tensor:
    n = qkv[0].shape[1]
    y = mixed(*(t.view(t.shape[0], n, m.h, SIZE).transpose(1, 2).reshape(-1, n, SIZE) for t in qkv))
    return y.view(y.shape[0] // m.h, m.h, n, SIZE).transpose(1, 2).flatten(2)


def tokens_first(m: Merged, *qkv: Tensor) -> Tensor:
    b, n, _ = qkv[0].shape
    y = mixed(*(t.transpose(0, 1).reshape(n, b * m.h, SIZE).transpose(0, 1) for t in qkv))
    return y.transpose(0, 1).reshape(n, b, m.h * SIZE).transpose(0, 1)


def bias_of_zeros(m: Merged, *qkv: Tensor) -> Tensor:
    b, n, _ = qkv[0].shape
    q, k, v = (t.view(b, n, m.h, -1).transpose(1, 2).reshape(b * m.h, n, -1) for t in qkv)
    y = (torch.zeros(b * m.h, n, n) + q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
    return y.view(b, m.h, n, -1).transpose(1, 2).flatten(2)


def unflattened(m: Merged, *qkv: Tensor) -> Tensor:
    return mixed(*(t.unflatten(-1, (m.h, SIZE)).transpose(1, 2) for t in qkv)).transpose(1, 2).flatten(2)


def windows(m: Merged, *qkv: Tensor) -> Tensor:
    b, n, _ = qkv[0].shape
    q, k, v = (t.reshape(b, n, m.h, -1).permute(0, 2, 1, 3).reshape(b * m.h, 2, n // 2, -1) for t in qkv)
    return mixed(q, k, v).reshape(b, m.h, n, SIZE).permute(0, 2, 1, 3).reshape(b, n, m.h * SIZE)


WAYS = [stacked, heads_back_from_the_batch, tokens_first, bias_of_zeros, unflattened, windows]


def made(attend: Attend) -> tuple[Merged, Tensor]:
    torch.manual_seed(0)
    return Merged(attend).eval(), torch.randn(2, 6, 6)


def without_heads(model: Merged, kept: Sequence[int]) -> Merged:
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for head in set(range(HEADS)) - set(kept):
            reference.out.weight[:, SIZE * head : SIZE * (head + 1)] = 0
    return reference


@pytest.mark.parametrize("attend", WAYS)
def test_heads_merged_with_the_batch_go_in_the_rewritten_graph(attend: Attend) -> None:
    model, x = made(attend)
    graph = prunus.trace(model, x)
    heads = [g.name for g in graph.groups() if g.heads_of]
    assert heads or attend is tokens_first
    kept = [0, 2, 3] if heads else [0, 1, 2, 3]
    plan = Plan.from_kept(graph, {**dict.fromkeys(heads, kept), "stem": list(range(0, WIDTH, 2))})
    smaller = rewrite(model, plan, x)
    reference = without_heads(model, kept)
    with torch.no_grad():
        reference.q.weight[:, 1::2] = reference.k.weight[:, 1::2] = reference.v.weight[:, 1::2] = 0
        for batch in (1, 2, 3, 5):
            other = torch.randn(batch, 6, 6)
            assert torch.allclose(reference(other), smaller(other), atol=1e-5)
    proven, proof = apply_and_verify_(model, plan, x)
    assert proof.passed
    assert proof.rewritten == isinstance(proven, RewrittenModel)


@pytest.mark.parametrize("dim", [1, -1])
def test_tensor_split_and_unflatten_at_any_dimension(dim: int) -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(5, 6), nn.Linear(3, 6)
            self.d = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.a(x).tensor_split([5], dim)
            return self.d(torch.relu(self.b(left) + self.c(right)).unflatten(dim, (2, 3)).flatten(-2))

    torch.manual_seed(0)
    model, x = Split().eval(), torch.randn(2, 4)
    graph = prunus.trace(model, x)
    plan = Plan.from_kept(graph, {g.name: list(range(g.units - 1)) for g in graph.groups() if g.rows is None})
    dense = copy.deepcopy(model)
    with torch.no_grad():
        dense.b.weight[:, 4] = dense.c.weight[:, 2] = 0
    smaller, proof = apply_and_verify_(model, plan, x)
    assert proof.passed
    assert torch.allclose(dense(x), smaller(x), atol=1e-6)


def cut_graph(name: str) -> tuple[RewrittenModel, Tensor]:
    model, x = ZOO[name].make(), ZOO[name].inputs(2)
    graph = prunus.trace(model, x)
    plan = Plan.from_kept(graph, {g.name: list(range(g.units // 2)) for g in graph.groups() if g.rows is None})
    return rewrite(model, plan, x), x


@pytest.mark.parametrize("name", ["hard_coded_view", "residual_option_a", "split_by_size", "decoder_hard_coded_view"])
def test_rewritten_graphs_are_copied_pickled_and_pruned_again(name: str) -> None:
    smaller, x = cut_graph(name)
    wanted = smaller(x)
    for again in (copy.deepcopy(smaller), pickle.loads(pickle.dumps(smaller))):
        assert torch.equal(again(x), wanted)
        assert list(again.state_dict()) == list(smaller.state_dict())
        again.train()
        assert again.training
        assert again.eval()(x).equal(wanted)
    assert any(isinstance(m, nn.Conv2d | nn.Linear) for m in smaller.modules())
    result = prunus.prune(smaller, x, method="l1", target=0.4, progress=False)
    assert result.plan.after.macs < result.plan.before.macs
    assert result.verification.passed


def test_a_rewritten_graph_says_what_sizes_it_takes() -> None:
    model, x = ZOO["hard_coded_view"].make(), ZOO["hard_coded_view"].inputs(2)
    smaller = prunus.prune(model, x, method="l1", target=0.5).model
    assert isinstance(smaller, RewrittenModel)
    with pytest.raises(DataError, match="captured graph takes"):
        smaller(torch.randn(2, 3, 12, 12))
    with pytest.raises(DataError, match="captured graph takes"):
        pickle.loads(pickle.dumps(smaller))(torch.randn(2, 4, 8, 8))
    assert smaller(x[:1]).shape == (1, 4)
