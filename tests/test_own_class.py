"""The user's own class first: what its code survives, and what a rewritten graph is said to lose."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import DataError, PruneError
from prunus.plan.plan import Plan
from prunus.proof.ownclass import survivors
from prunus.surgery import piecewidths
from prunus.surgery.cut import cut_
from zoo import ZOO
from zoo_nets import C2f, HardCodedView, cbr


class Detector(nn.Module):
    """Blocks that cut a layer in two equal halves, a head that keeps its resolution, and methods of its own."""

    def __init__(self, by_size: bool = False) -> None:
        super().__init__()
        self.stem, self.block = cbr(3, 8), C2f(8, 4, by_size)
        self.last, self.out = cbr(8, 10), nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.last(self.block(self.stem(x))))

    def fuse(self) -> str:
        return "fused"


def made(by_size: bool = False) -> tuple[Detector, Tensor]:
    torch.manual_seed(0)
    return Detector(by_size).eval(), torch.randn(1, 3, 8, 8)


@pytest.mark.parametrize("by_size", [False, True])
def test_equal_halves_keep_a_detector_in_its_class(by_size: bool) -> None:
    model, x = made(by_size)
    result = prunus.prune(model, x, method="l1", target=0.5, allow=("own_class",), progress=False)
    assert type(result.model) is Detector
    assert result.model.fuse() == "fused"
    assert not result.verification.rewritten
    assert result.verification.passed
    kept = {g.name: len(g.kept) for g in result.plan.groups}
    halves = [n for n in kept if n.startswith("block.cv1.0")]
    assert len({kept[n] for n in halves}) == 1
    assert kept[halves[0]] < 4
    assert any("equal" in note for note in result.plan.notes) == (len(halves) > 1)
    assert result.model(torch.randn(2, 3, 12, 16)).shape == (2, 3, 12, 16)


@pytest.mark.parametrize("kind", ["split", "view"])
def test_what_the_code_does_not_survive_stays_and_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piecewidths, "PIECE_WIDTHS", ())  # as if the class had another name for it
    model: nn.Module = made(True)[0] if kind == "split" else ZOO["hard_coded_view"].make()
    x = torch.randn(2, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    result = prunus.prune(model, x, method="l1", target=0.3, allow=("own_class",), progress=False)
    assert type(result.model) is type(model)
    assert result.verification.passed
    assert "does not survive its removal" in result.plan.explain()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    free = prunus.prune(model, x, method="l1", target=0.5, progress=False)
    assert free.plan.after.macs <= result.plan.after.macs


def test_models_that_survive_everything_are_not_restricted() -> None:
    animal = ZOO["residual_option_b"]
    model, x = animal.make(), animal.inputs(2)
    graph = prunus.trace(model, x)
    found = survivors(model, graph, graph.groups(), x)
    assert found.groups == list(graph.groups())
    assert found.notes == ()


def unequal(model: Detector, x: Tensor) -> tuple[Any, Any]:
    graph = prunus.trace(model, x)
    plan = Plan.from_kept(graph, {g.name: list(range(g.units - 1 - i % 2)) for i, g in enumerate(graph.groups())})
    return plan, prunus.proof.apply.apply_and_verify_(model, plan, x)


def test_a_rewritten_graph_takes_images_of_other_sizes_where_its_code_does() -> None:
    model, x = made(True)
    dense = copy.deepcopy(model)
    _, (smaller, proof) = unequal(model, x)
    assert proof.rewritten
    assert any("other sizes" in note for note in proof.notes)
    assert any("fuse" in note for note in proof.notes)
    larger = torch.randn(3, 3, 12, 20)
    assert smaller(larger).shape == dense(larger).shape


class OneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = HardCodedView()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_a_graph_of_one_size_says_so_before_and_at_the_call() -> None:
    torch.manual_seed(0)
    result = prunus.prune(OneSize().eval(), torch.randn(2, 3, 8, 8), method="l1", target=0.5, progress=False)
    assert result.verification.rewritten
    assert "8 x 8 alone" in result.plan.explain()
    with pytest.raises(DataError, match="captured graph takes"):
        result.model(torch.randn(2, 3, 16, 16))


def test_nothing_but_the_own_class_is_refused_if_nothing_survives() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu().view(-1, 8))

    with pytest.raises(PruneError):
        prunus.prune(Fixed().eval(), torch.randn(2, 4), method="l1", target=0.5, allow=("own_class",), progress=False)


class OneSizeOnly(nn.Module):
    """A parametrization that runs on the weight it was made for alone."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Twice the weight of ten rows."""
        if not torch.compiler.is_exporting() and len(weight) != 10:
            raise ValueError("ten rows are wanted")
        return 2 * weight


def test_a_group_whose_weight_can_not_be_computed_after_a_cut_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    nn.utils.parametrize.register_parametrization(model[0], "weight", OneSizeOnly())
    result = prunus.prune(model, torch.randn(3, 4), method="l1", target={"2": 4}, allow=("own_class",), progress=False)
    assert set(result.plan.kept) == {"2"}
    assert result.model[0].out_features == 10
    assert not result.verification.rewritten
    assert any("ten rows are wanted" in note for note in result.plan.notes)


class Pieces(nn.Module):
    """Cut into halves by a method, and by a number that it holds once it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.other = 8, 8
        self.a, self.m, self.b = nn.Linear(4, 16), nn.Linear(8, 8), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, -1)
        return self.b(torch.cat((left, right, self.m(right)), -1))

    def exported(self, x: Tensor) -> Tensor:
        left, right = self.a(x).split((self.c, self.c), -1)
        return self.b(torch.cat((left, right, self.m(right)), -1))


def test_the_width_of_equal_pieces_that_a_module_holds_is_that_which_is_left() -> None:
    model, x = nn.Sequential(Pieces()).eval(), torch.randn(2, 4)
    settings = {"method": "l1", "target": 0.5, "allow": ("own_class",), "progress": False}
    small = prunus.prune(model, x, **settings).model
    assert (small[0].c, small[0].other) == (4, 8)
    assert torch.equal(small[0].exported(x), small(x))
    plan = prunus.Plan.from_kept(prunus.trace(model, x), {"0.a": range(4), "0.a#2": range(4)})
    undo = cut_(model, plan)
    assert model[0].c == 4
    undo()
    assert model[0].c == 8
    uneven = prunus.Plan.from_kept(prunus.trace(model, x), {"0.a": range(4), "0.a#2": range(5)})
    cut_(model, uneven)
    assert model[0].c == 8
