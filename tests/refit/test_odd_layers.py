"""Layers that are called in unusual ways are refitted; data in which nothing is to be found break nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from refitted import reasons, refitted
from torch import Tensor, nn

import prunus
from prunus.refit import repair


class Unbatched(nn.Module):
    """A convolution over all examples in a row, and a layer whose output is one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 12), nn.Conv1d(12, 4, 3, padding=1), nn.Linear(4, 3)
        self.d, self.e, self.point = nn.Linear(6, 12), nn.Linear(12, 3), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.gelu(self.a(x)).t())
        return self.c(y.t()) + self.e(F.gelu(self.d(self.point)))


class Positions(nn.Module):
    """A small network makes biases of stored positions, as in Swin v2."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Sequential(nn.Linear(2, 16), nn.GELU(), nn.Linear(16, 6))
        self.register_buffer("positions", torch.randn(5, 2))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(x + self.make(self.positions)))


def test_layers_without_a_dimension_for_examples() -> None:
    torch.manual_seed(0)
    done = refitted(Unbatched(), {"a": range(7), "d": range(7)}, torch.randn(40, 5), torch.randn(30, 5))
    assert {"b", "e"} <= set(reasons(done))


def test_layers_on_stored_tensors() -> None:
    torch.manual_seed(0)
    done = refitted(Positions(), {"make.0": range(8)}, torch.randn(20, 5, 6), torch.randn(9, 5, 6))
    assert reasons(done)["make.2"] == ""
    assert done.refits[0].won_back > 0.9


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_that_are_not_finite(value: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    plan = prunus.Plan.from_kept(prunus.trace(model, torch.ones(2, 5)), {"0": range(4)})
    x = torch.randn(20, 5)
    x[3] = value
    done = repair(model, plan, [(x,)], progress=False)
    assert "not finite" in reasons(done)["2"]
    assert all(torch.equal(t, done.model.state_dict()[n]) for n, t in model.state_dict().items())


def test_units_that_never_speak() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.constant_(model[0].bias, -1e3)  # type: ignore[arg-type]
    assert reasons(refitted(model, {"0": range(4)}, torch.randn(20, 5))) == {"2": "no change helps on held-out data"}


class Chosen(nn.Module):
    """Looks at some of the examples alone; in a batch there may be none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x[x[:, 0] > 0]).relu())


class ChosenLater(Chosen):
    """Chooses by what it made itself."""

    def forward(self, x: Tensor) -> Tensor:
        made = self.a(x).relu()
        return self.b(made[made.sum(1) > 1])


def test_rows_that_are_others_in_the_smaller_network_are_left() -> None:
    torch.manual_seed(0)
    model, x = ChosenLater(), torch.randn(60, 5)
    plan = prunus.Plan.from_kept(prunus.trace(model, x), {"a": range(7)})
    (refit,) = repair(model, plan, [(x,)], progress=False).refits
    assert "they are others in the smaller network" in refit.reason


def test_a_batch_of_which_nothing_is_left() -> None:
    torch.manual_seed(0)
    model, x = Chosen(), torch.randn(60, 5).abs()
    plan = prunus.Plan.from_kept(prunus.trace(model, x), {"a": range(7)})
    (refit,) = repair(model, plan, [(x,), (-x,)], progress=False).refits
    assert refit.samples == 60
    (refit,) = repair(model, plan, [(-x,)], progress=False).refits
    assert refit.reason
