"""Layers that are called in unusual ways are refitted, or left with the reason; never does repair break on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import SurgeryError
from prunus.proof.apply import apply_and_verify_
from prunus.refit import RepairConfig, Repaired, repair
from prunus.runtime.copies import copied
from zoo import ZOO


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


def repaired(model: nn.Module, kept: dict[str, Any], *batches: Tensor) -> Repaired:
    plan = prunus.Plan.from_kept(prunus.trace(model, batches[0]), kept)
    config = RepairConfig(held_out=3)
    done = repair(model, plan, [(b, torch.zeros(len(b))) for b in batches], config=config, progress=False)
    assert all(r.after <= r.before for r in done.refits)
    assert apply_and_verify_(copied(done.model), plan, batches[0])[1].passed
    return done


def reasons(done: Repaired) -> dict[str, str]:
    return {r.layer: r.reason for r in done.refits}


def test_layers_without_a_dimension_for_examples() -> None:
    torch.manual_seed(0)
    done = repaired(Unbatched(), {"a": range(7), "d": range(7)}, torch.randn(40, 5), torch.randn(30, 5))
    assert {"b", "e"} <= set(reasons(done))


def test_layers_on_stored_tensors() -> None:
    torch.manual_seed(0)
    done = repaired(Positions(), {"make.0": range(8)}, torch.randn(20, 5, 6), torch.randn(9, 5, 6))
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
    assert reasons(repaired(model, {"0": range(4)}, torch.randn(20, 5))) == {"2": "no change helps on held-out data"}


class Tokens(nn.Module):
    """The last layer's weight is the table of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(20, 8), nn.Linear(8, 32), nn.Linear(32, 8)
        self.last = nn.Linear(8, 20, bias=False)
        self.last.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.last(x + self.down(F.gelu(self.up(x))))


def test_tied_weights_stay() -> None:
    torch.manual_seed(0)
    done = repaired(Tokens(), {"up": range(20)}, *(torch.randint(0, 20, (n, 6)) for n in (2, 9)))
    assert reasons(done) == {"down": "", "last": "its weight is used by several calls"}
    assert done.model.get_submodule("last").weight is done.model.get_submodule("table").weight


@pytest.mark.parametrize("name", ["shared_conv", "siamese", "heads_shared_layers"])
def test_shared_layers_are_left(name: str) -> None:
    model, inputs = ZOO[name].make(), ZOO[name].inputs
    group = next(g for g in prunus.trace(model, inputs(2)).groups() if g.rows is None)
    done = repaired(model, {group.name: range(group.units // 2)}, inputs(2), inputs(9))
    assert "its weight is used by several calls" in reasons(done).values()


class Coded(nn.Module):
    """A module made of a graph has its source in an attribute of this name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.code = nn.Linear(5, 8), nn.Linear(8, 3), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()) + self.code


def test_what_torch_makes_no_module_of_is_refused() -> None:
    model, x = Coded(), torch.randn(8, 5)
    plan = prunus.Plan.from_kept(prunus.trace(model, x), {"a": range(4)})
    with pytest.raises(SurgeryError, match="another name"):
        repair(model, plan, [(x,)], progress=False)
