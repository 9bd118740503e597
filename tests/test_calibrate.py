"""Measured losses: exact where a loss is a sum over units, shared out where sizes are few, right where norms err."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunus
from prunus.errors import ConfigError, DataError
from prunus.graph.groups import ChannelGroup
from prunus.learning.findings import Scores
from prunus.learning.measured import first_batches, masked_loss, measured_scores
from prunus.pipeline.planning import make_plan
from prunus.plan.allocation import Allocation, select
from zoo_attention import Block


class Branches(nn.Module):
    """Outputs are the sum of two hidden layers' units, each positive: the loss below is a sum over units."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(3, 6), nn.Linear(3, 8)
        self.from_left, self.from_right = nn.Linear(6, 1, bias=False), nn.Linear(8, 1, bias=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, 0.1, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.from_left(self.left(x).relu()) + self.from_right(self.right(x).relu())


def reward(outputs: Tensor, _: Tensor, reduction: str = "mean") -> Tensor:
    return -outputs.mean() if reduction == "mean" else -outputs.sum()


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    x = torch.rand(count, 10, 3, generator=torch.Generator().manual_seed(1))
    return [(part, torch.zeros(10)) for part in x]


def contributions(model: Branches) -> dict[str, Tensor]:
    """What each unit adds to the reward on these data, in closed form."""
    x = torch.cat([b for b, _ in batches()])
    with torch.no_grad():
        return {
            "left": model.left(x).relu().mean(0) * model.from_left.weight[0],
            "right": model.right(x).relu().mean(0) * model.from_right.weight[0],
        }


def test_a_loss_that_is_a_sum_over_units_is_found_exactly() -> None:
    model = Branches()
    groups, true = prunus.trace(model, batches()[0][0]).groups(), contributions(model)
    found = measured_scores(model, groups, true, batches(), reward, sizes=16)
    for group in groups:
        rest = true[group.name].sort(descending=True).values[1:]  # one unit always stays
        measured = found[group.name].sort(descending=True).values[1:]
        torch.testing.assert_close(measured.float(), rest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [2, 3, 5])
def test_few_sizes_share_out_what_was_measured(sizes: int) -> None:
    model = Branches()
    groups, true = prunus.trace(model, batches()[0][0]).groups(), contributions(model)
    found = measured_scores(model, groups, true, batches(), reward, sizes=sizes)
    for group in groups:
        smallest = max(1, round(group.units / sizes))
        expected = true[group.name].sort(descending=True).values[smallest:].sum()
        assert float(found[group.name].sort(descending=True).values[smallest:].sum()) == pytest.approx(
            float(expected), rel=1e-4
        )
        assert torch.equal(found[group.name].argsort(descending=True), true[group.name].argsort(descending=True))


def test_it_corrects_scores_that_mislead_between_groups() -> None:
    model = Branches()
    with torch.no_grad():
        model.from_right.weight *= 1e-4  # nobody hears them
        model.right.weight *= 10  # but norms say that they matter
    x = batches()[0][0]
    exact = Allocation(round_to=1)
    misled = prunus.prune(model, x, method="l1", target="params<=60%", allocation=exact)
    assert {g.name: len(g.kept) for g in misled.plan.groups}["left"] < 6
    for allocation in (Allocation(scope="measured", round_to=1), Allocation(scope="auto", round_to=1), exact):
        told = prunus.prune(
            model, x, method="l1", target="params<=60%", data=batches(), loss_fn=reward, allocation=allocation,
            repair=False,
        )  # fmt: skip
        assert told.plan.asked == "params<=60%, measured"
        assert {g.name: len(g.kept) for g in told.plan.groups}["left"] == 6
        with torch.no_grad():
            assert float(told.model(x).mean()) > float(misled.model(x).mean())


def test_of_two_plans_the_one_with_less_loss_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Branches(), batches()[0][0]

    def spoiled(_: nn.Module, groups: list[ChannelGroup], scores: dict[str, Tensor], *__: object, **___: object) -> Any:
        return {g.name: -scores[g.name].double() for g in groups}

    monkeypatch.setattr(sys.modules["prunus.pipeline.planning"], "measured_scores", spoiled)
    settings: dict[str, Any] = {"method": "taylor", "target": "params<=60%", "data": batches(), "loss_fn": reward}
    chosen = prunus.prune(model, x, **settings)
    assert chosen.plan.kept == prunus.prune(model, x, **settings, allocation=Allocation(scope="global")).plan.kept
    assert chosen.plan.asked == "params<=60%"


def test_the_loss_of_a_plan_is_that_of_the_masked_network() -> None:
    model = Branches()
    groups, true = prunus.trace(model, batches()[0][0]).groups(), contributions(model)
    kept = {"left": (0, 2), "right": (1, 3, 5)}
    found = masked_loss(model, groups, kept, batches(), reward)
    assert found == pytest.approx(-float(sum(true[n][list(k)].sum() for n, k in kept.items())), rel=1e-5)


def test_rows_lose_their_units_together_and_in_order() -> None:
    torch.manual_seed(0)
    model, x = Block(), torch.randn(8, 5, 6)
    graph = prunus.trace(model, x)
    data = [(x, torch.randint(0, 3, (8,)))]
    groups = [g for g in graph.groups() if g.multiple > 1]
    assert groups
    scores = {g.name: torch.rand(g.units, generator=torch.Generator().manual_seed(2)) for g in groups}
    found = measured_scores(model, groups, scores, data, nn.functional.cross_entropy)
    for group in groups:
        for count in range(group.multiple, group.units + 1, group.multiple):
            asked = {group.name: count}
            assert select([group], scores, asked) == select([group], found, asked)


def test_the_model_is_left_as_it_was() -> None:
    model = Branches().train()
    model.left.bias.requires_grad_(False)
    before, groups = copy.deepcopy(model.state_dict()), prunus.trace(model, batches()[0][0]).groups()
    measured_scores(model, groups, contributions(model), batches(), reward)
    assert model.training
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_the_first_batches_depend_on_the_seed_alone() -> None:
    """A loader that shuffles draws from the global state; two plans must be compared on the same examples."""
    values = torch.arange(40.0)
    loader = DataLoader(TensorDataset(values, values), batch_size=5, shuffle=True)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = first_batches(loader, 7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    other = first_batches(loader, 7)
    assert len(one) == 4
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(one, other, strict=True))
    assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(one, first_batches(loader, 8), strict=True))


def test_refusals() -> None:
    model = Branches()
    groups, true = prunus.trace(model, batches()[0][0]).groups(), contributions(model)
    with pytest.raises(ConfigError, match="sizes=1"):
        measured_scores(model, groups, true, batches(), reward, sizes=1)
    with pytest.raises(ConfigError, match="data or loss_fn is missing"):
        prunus.prune(model, batches()[0][0], method="l1", target="params<=60%", allocation=Allocation(scope="measured"))
    with pytest.raises(DataError, match="there are none"):
        first_batches([], 0)
    broken = [(torch.full((10, 3), torch.nan), torch.zeros(10))]
    with pytest.raises(DataError, match="NaN or infinity in the inputs"):
        measured_scores(model, groups, true, broken, reward)
    with pytest.raises(ConfigError, match="no measured losses"):
        make_plan(
            prunus.trace(model, batches()[0][0]), groups, Scores(true), pruning_ratio=0.5,
            allocation=Allocation(scope="measured"),
        )  # fmt: skip
    with pytest.raises(ConfigError, match="'cheapest' is not known"):
        Allocation(scope="cheapest")  # type: ignore[arg-type]
