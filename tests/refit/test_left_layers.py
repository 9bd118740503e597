"""Layers that can't be refitted are left with the reason, and those behind them are refitted all the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from refitted import reasons, refitted
from torch import Tensor, nn

import prunus
from prunus.errors import SurgeryError
from prunus.refit import repair
from zoo import ZOO


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
    done = refitted(Tokens(), {"up": range(20)}, *(torch.randint(0, 20, (n, 6)) for n in (2, 9)))
    assert reasons(done) == {"down": "", "last": "its weight is used by several calls"}
    assert done.model.get_submodule("last").weight is done.model.get_submodule("table").weight


@pytest.mark.parametrize("name", ["shared_conv", "siamese"])
def test_shared_layers_are_left(name: str) -> None:
    model, inputs = ZOO[name].make(), ZOO[name].inputs
    group = next(g for g in prunus.trace(model, inputs(2)).groups() if g.rows is None)
    done = refitted(model, {group.name: range(group.units // 2)}, inputs(2), inputs(9))
    assert "its weight is used by several calls" in reasons(done).values()


def test_computed_weights_are_left() -> None:
    torch.manual_seed(0)
    behind = nn.utils.parametrizations.weight_norm(nn.Linear(16, 8))
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), behind, nn.ReLU(), nn.Linear(8, 3))
    done = refitted(net, {"0": range(9)}, torch.randn(400, 5))
    assert reasons(done) == {"2": "its weight is computed", "4": ""}


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


class Unfit(nn.Module):
    """Weights that are constants of the code, or complex, behind layers that can be refitted."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 12), nn.Linear(12, 8), nn.Linear(4, 3)
        self.kernel, self.waves = torch.randn(6, 8), nn.Parameter(torch.randn(4, 6, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(F.linear(self.b(self.a(x).relu()), self.kernel))
        return self.out(F.linear(torch.fft.fft(x), self.waves).abs())


def test_what_is_no_parameter_and_no_real_number_is_left() -> None:
    torch.manual_seed(0)
    done = refitted(Unfit(), {"a": range(7)}, torch.randn(60, 5))
    assert reasons(done) == {
        "b": "", "out": done.refits[-1].reason, "kernel": "its weight is neither a parameter nor a buffer",
        "waves": "its weight is not one of real numbers",
    }  # fmt: skip
