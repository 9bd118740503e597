"""Experts in a list show, by derivatives, what experts in one tensor show of the same weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import DataError, TraceError
from prunus.gates.routed import NONE, Routed
from prunus.gates.routes import routes_seen

K, WIDTH, HIDDEN, CHOICES = 5, 6, 9, 2


class Slices(nn.Module):
    """Experts in two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = K
        self.up = nn.Parameter(torch.randn(K, HIDDEN, WIDTH))
        self.down = nn.Parameter(torch.randn(K, WIDTH, HIDDEN))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        parts = []
        for choice in range(chosen.shape[1]):
            hidden = F.relu(torch.einsum("nd,nhd->nh", x, self.up[chosen[:, choice]]))
            parts.append(torch.einsum("nh,ndh->nd", hidden, self.down[chosen[:, choice]]) * weights[:, choice, None])
        return torch.stack(parts).sum(0)


class Block(nn.Module):
    """A router, experts of either kind, and one that is always there."""

    def __init__(self, listed: bool) -> None:
        super().__init__()
        self.num_experts, self.top_k = K, CHOICES
        self.gate = nn.Linear(WIDTH, K, bias=False)
        self.experts = nn.ModuleList(map(expert, range(K))) if listed else Slices()
        self.shared = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the experts add, and the logits."""
        logits = self.gate(x)
        weights, chosen = torch.topk(torch.softmax(logits, -1), self.top_k, dim=-1)
        weights = 1.5 * weights / weights.sum(-1, keepdim=True)
        if not isinstance(self.experts, nn.ModuleList):
            return self.shared(x) + self.experts(x, chosen, weights), logits
        made = torch.zeros_like(x)
        for number in reversed(range(self.num_experts)):
            token, choice = torch.where(chosen == number)
            token, choice = token.flip(0), choice.flip(0)
            made.index_add_(0, token, self.experts[number](x[token]) * weights[token, choice, None])
        return self.shared(x) + made, logits


def expert(_: int) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN, bias=False), nn.ReLU(), nn.Linear(HIDDEN, WIDTH, bias=False))


class Model(nn.Module):
    """Classes of tokens, behind a residual sum."""

    def __init__(self, listed: bool) -> None:
        super().__init__()
        self.block, self.head = Block(listed), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Scores, [N, 3]."""
        made, _ = self.block(x)
        scores: Tensor = self.head(x + made)
        return scores


def pair() -> tuple[Any, Any]:
    """The same network with experts in tensors and in a list."""
    fused, listed = Model(listed=False).eval(), Model(listed=True).eval()
    weights = fused.state_dict()
    up, down = weights.pop("block.experts.up"), weights.pop("block.experts.down")
    for number in range(K):
        weights[f"block.experts.{number}.0.weight"] = up[number]
        weights[f"block.experts.{number}.2.weight"] = down[number]
    listed.load_state_dict(weights)
    return fused, listed


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(40, WIDTH), torch.randint(3, (40,))) for _ in range(3)]


def test_both_forms_are_scored_alike() -> None:
    (fused, listed), data = pair(), batches()
    torch.testing.assert_close(fused(data[0][0]), listed(data[0][0]))
    for method in ("reap", "frequency"):
        found = []
        for model in (fused, listed):
            before = copy.deepcopy(model.state_dict())
            graph = prunus.trace(model, data[0][0])
            kind = prunus.methods.resolve(method)
            scores = prunus.fit(model, graph.experts, kind, data, F.cross_entropy, num_data=120)
            found.append(scores.values["block.experts"])
            assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
        assert found[0].min() > 0
        torch.testing.assert_close(*found)


def test_both_forms_are_repaired_and_loaded_alike() -> None:
    (fused, listed), data = pair(), batches()
    ways: dict[str, Any] = {"data": data, "loss_fn": F.cross_entropy, "allow": ("experts",), "progress": False}
    done = [prunus.prune(m, data[0][0], method="reap", target="experts<=3", **ways) for m in (fused, listed)]
    assert done[0].plan.kept == done[1].plan.kept
    assert done[0].loads == done[1].loads
    assert done[0].loads
    (first, second) = (next(r for r in d.refits if r.layer == "block.experts") for d in done)
    assert not second.reason
    assert all("depends on data" in r.reason for r in done[1].refits if r.layer.startswith("block.experts."))
    assert second.after < second.before
    assert second.ridge == first.ridge > 0
    assert [second.before, second.after] == pytest.approx([first.before, first.after], rel=1e-4)
    slices = torch.stack([e[2].weight for e in done[1].model.block.experts])  # type: ignore[union-attr]
    torch.testing.assert_close(slices, done[0].model.block.experts.down, rtol=1e-3, atol=1e-4)  # type: ignore[union-attr]
    torch.testing.assert_close(done[1].model(data[0][0]), done[0].model(data[0][0]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tokens_and_weights_are_those_of_the_router(dtype: torch.dtype) -> None:
    """More tokens than an output of this width has digits for; formats in which no sum of them would be told apart."""
    _, model = pair()
    model, x = model.to(dtype), torch.randn(300, WIDTH).to(dtype)
    calls: list[Routed] = []
    with torch.no_grad(), routes_seen(model, {"block.experts": "block"}, calls.append):
        made = model(x)
    assert not made.requires_grad
    assert torch.equal(made, model(x).detach())
    (call,) = calls
    with torch.no_grad():
        weights, chosen = torch.topk(torch.softmax(model.block.gate(x), -1), CHOICES, dim=-1)
        weights = 1.5 * weights / weights.sum(-1, keepdim=True)
        order = chosen.argsort(1)
        assert torch.equal(call.chosen.sort(1).values, chosen.gather(1, order))
        torch.testing.assert_close(call.weights.gather(1, call.chosen.argsort(1)), weights.gather(1, order))
        for choice in range(CHOICES):
            by_hand = torch.stack(
                [model.block.experts[e](x[n : n + 1])[0] for n, e in enumerate(call.chosen[:, choice])]
            )
            torch.testing.assert_close(call.made(choice), by_hand, rtol=2e-2, atol=2e-2)


class Mixing(Block):
    """What comes out is more than a sum of what experts make."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The sum, with its numbers mixed."""
        made, logits = super().forward(x)
        return self.shared(made), logits


def test_what_is_no_sum_is_refused_and_kept_as_it_is() -> None:
    model, data = Model(listed=True).eval(), batches()
    model.block = Mixing(listed=True).eval()
    ways: dict[str, Any] = {"data": data, "loss_fn": F.cross_entropy, "allow": ("experts",), "progress": False}
    with pytest.raises(DataError, match="is no sum of what they make"):
        prunus.prune(model, data[0][0], method="reap", target="experts<=3", **ways)
    result = prunus.prune(model, data[0][0], method="fisher", target="experts<=3", **ways)
    assert any("is no sum" in r.reason for r in result.refits if r.layer == "block.experts")
    assert any("tokens of the experts are not told" in note for note in result.plan.notes)


def test_a_token_without_an_expert_counts_for_none() -> None:
    """An expert drops what comes to it beyond its capacity: its number is zero there."""
    _, model = pair()
    x, calls = torch.randn(40, WIDTH), []

    def drop(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * (torch.arange(len(output)) < 3)[:, None]

    with torch.no_grad(), routes_seen(model, {"block.experts": "block"}, calls.append):
        model.block.experts[0].register_forward_hook(drop)
        model(x)
        chosen = torch.topk(model.block.gate(x), CHOICES, dim=-1).indices
    assert int((chosen == 0).sum()) > 3
    assert int((calls[0].chosen == 0).sum()) == 3
    assert int((calls[0].chosen == NONE).sum()) == int((chosen == 0).sum()) - 3
    assert all(float(calls[0].made(n)[calls[0].chosen[:, n] == NONE].abs().sum()) == 0 for n in range(CHOICES))


def test_a_loop_over_experts_of_transformers_is_refused_with_the_way_out() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_local_experts": 2}
    config = transformers.MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    model = transformers.MixtralModel(config).eval()
    model.set_experts_implementation("eager")
    inputs = {"input_ids": torch.arange(6)[None], "use_cache": False}
    with pytest.raises(TraceError, match="set_experts_implementation"):
        prunus.trace(model, inputs)
    model.set_experts_implementation("grouped_mm")
    assert len(prunus.trace(model, inputs).experts) == 1
