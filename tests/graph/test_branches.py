"""Branches on data: refused, or followed the way of the example inputs when the user says so."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import DataError, TraceError
from prunus.runtime.calling import call, flat_outputs


class Routed(nn.Module):
    """A number chooses between two ways, another how often a layer is applied."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(4, 12), nn.Linear(12, 8), nn.Linear(12, 8)
        self.again, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        y = self.left(y) if x.mean() > 0 else self.right(y)
        for _ in range(int(x.abs().max().item())):
            y = self.again(y).relu()
        return self.head(y)


def made(sign: float) -> tuple[Routed, Tensor]:
    torch.manual_seed(0)
    return Routed().eval(), sign * torch.tensor([[2.5, 0.5, 0.1, 0.2], [1.0, 2.0, 0.3, 0.1]])


def test_without_a_word_it_is_refused_and_the_way_out_is_named() -> None:
    model, x = made(1.0)
    with pytest.raises(TraceError, match="follow_branches=True"):
        prunus.trace(model, x)


@pytest.mark.parametrize(("sign", "taken", "other"), [(1.0, "left", "right"), (-1.0, "right", "left")])
def test_the_way_of_the_example_inputs_is_pruned_and_proven(
    sign: float, taken: str, other: str, tmp_path: Path
) -> None:
    model, x = made(sign)
    result = prunus.prune(model, x, method="l1", target=0.5, allow=("follow_branches",))
    assert result.verification.passed
    assert {s.tensor for g in result.graph.groups() for s in g.slots} >= {
        "stem.weight",
        f"{taken}.weight",
        "again.weight",
    }
    smaller = result.model
    assert getattr(smaller, taken).weight.shape[1] == smaller.stem.out_features < 12
    assert getattr(smaller, other).weight.shape == (8, 12)
    assert "branches on data go the way of the example inputs" in result.plan.explain()
    assert prunus.Plan.from_json(result.plan.to_json()) == result.plan
    prunus.save(tmp_path / "artifact", smaller, result.plan, example_inputs=x)
    wanted = smaller(x)
    assert torch.allclose(flat_outputs(call(prunus.load(tmp_path / "artifact"), x))[0], wanted, atol=1e-6)
    assert torch.equal(prunus.load(tmp_path / "artifact", lambda: copy.deepcopy(model))(x), wanted)
    with pytest.raises(RuntimeError):  # the way that was not looked at is loud, not wrong
        smaller(-x)


def test_random_inputs_prove_nothing_there() -> None:
    model, x = made(1.0)
    plan = prunus.Plan.from_kept(prunus.trace(model, x, follow_branches=True), {"stem": [0, 1, 2]})
    with pytest.raises(DataError, match="branches on data"):
        prunus.apply_(model, plan)


class Restless(nn.Module):
    """Never asks the same twice: more each time, or fewer, by a number that is no state of the model's."""

    def __init__(self, times: Iterator[int]) -> None:
        super().__init__()
        self.first, self.last, self.times = nn.Linear(2, 4), nn.Linear(4, 2), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(next(self.times)):
            if x.sum() > 100:
                return x
        return self.last(self.first(x))


@pytest.mark.parametrize(("step", "asked"), [(1, "more"), (-1, "fewer")])
def test_code_that_runs_another_way_each_time_is_refused(step: int, asked: str) -> None:
    with pytest.raises(TraceError, match=f"{asked} numbers than in its first run"):
        prunus.trace(Restless(itertools.count(5, step)).eval(), torch.randn(2, 2), follow_branches=True)
