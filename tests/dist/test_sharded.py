"""A transformer that FSDP2 deals out to two processes is pruned as the whole one is in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import two_processes, write_down
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import prunus
from prunus.errors import ConfigError
from prunus.pipeline.sharded import prune_sharded

WIDTH, METHODS = 16, ("fisher", "dirichlet")
TARGET = "macs<=60%"


class Block(nn.Module):
    """Attention in one head and a feed-forward part, each added to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x)
        x = x + self.out(F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h)))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Transformer(nn.Module):
    """Two blocks between an embedding and a head, and the number of positions in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 4)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1) * self.scale)


def sharded(model: nn.Module) -> nn.Module:
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block)
    return fully_shard(model)


def dense() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Transformer()
    x = torch.randn(48, 5, 8)
    return model, x, x[:, :, :4].sum(1).argmax(1)


def options(method: str) -> dict[str, Any]:
    chosen = prunus.DirichletPruning(min_steps=6) if method == "dirichlet" else method
    return {"method": chosen, "target": TARGET, "loss_fn": F.cross_entropy, "progress": False}


def told(model: nn.Module, plan: prunus.Plan, scores: Any, weights: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "kept": {name: list(kept) for name, kept in plan.kept.items()},
        "scores": {name: values.tolist() for name, values in scores.values.items()},
        "weights": {name: value.tolist() for name, value in weights.items()},
        "probability": {g.name: list(g.keep_probability or ()) for g in plan.groups},
    }


def bytes_here(model: nn.Module) -> int:
    held = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return sum(p.numel() * p.element_size() for p in held)


def found(rank: int, world: int) -> dict[str, Any]:
    model, x, y = dense()
    before = {n: p.clone() for n, p in model.named_parameters()}
    with torch.device("meta"):
        skeleton = Transformer()
    whole = bytes_here(model)
    sharded(model)
    data = [(a[rank::world], b[rank::world]) for a, b in zip(x.split(24), y.split(24), strict=True)]
    answers: dict[str, Any] = {"bytes": [bytes_here(model), whole]}
    for method in METHODS:
        done = prune_sharded(model, skeleton, x[:3], shard=sharded, data=data, **options(method))
        weights = {n: p.full_tensor() for n, p in done.model.named_parameters()}
        answers[method] = told(done.model, done.plan, done.scores, weights)
        answers[method]["error"] = done.max_error
        answers[method]["bytes"] = [bytes_here(done.model), sum(4 * w.numel() for w in weights.values())]
    answers["as it was"] = all(torch.equal(p.full_tensor(), before[n]) for n, p in model.named_parameters())
    F.cross_entropy(model(data[0][0]), data[0][1]).backward()
    answers["trains"] = all(p.grad is not None for p in model.parameters())
    F.cross_entropy(done.model(data[0][0]), data[0][1]).backward()
    answers["smaller trains"] = all(p.grad is not None for p in done.model.parameters())
    return answers


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    return two_processes(__file__, tmp_path_factory.mktemp("sharded"))


@pytest.mark.dist
@pytest.mark.parametrize("method", METHODS)
def test_shards_are_pruned_as_the_whole(method: str, ranks: tuple[dict[str, Any], dict[str, Any]]) -> None:
    model, x, y = dense()
    alone = prunus.prune(
        model, x[:3], data=[(x[:24], y[:24]), (x[24:], y[24:])], repair=False,
        allocation=prunus.Allocation("global"), **options(method),
    )  # fmt: skip
    wanted = told(alone.model, alone.plan, alone.scores, dict(alone.model.named_parameters()))
    for answers in ranks:
        assert answers[method]["kept"] == wanted["kept"]
        assert answers[method]["error"] < 1e-5
        assert 0 < answers[method]["bytes"][0] < 0.6 * answers[method]["bytes"][1]
        for what in ("scores", "weights", "probability"):
            assert answers[method][what].keys() == wanted[what].keys()
            for name, values in wanted[what].items():
                got = torch.tensor(answers[method][what][name])
                torch.testing.assert_close(got, torch.tensor(values), rtol=1e-3, atol=1e-6)


@pytest.mark.dist
def test_the_sharded_model_is_as_it_was(ranks: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for answers in ranks:
        assert answers["bytes"][0] < 0.6 * answers["bytes"][1]
        assert answers["as it was"]
        assert answers["trains"]
        assert answers["smaller trains"]


def test_what_is_not_sharded_is_refused() -> None:
    model, x, y = dense()
    with pytest.raises(ConfigError, match="not sharded"):
        prune_sharded(model, model, x, shard=sharded, data=[(x, y)], **options("fisher"))


if __name__ == "__main__":
    write_down(found)
