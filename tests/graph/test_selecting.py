"""Units selected by an index that the model holds: the index is renumbered with what stays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import PlanError
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from prunus.runtime.calling import outputs
from prunus.surgery.rewritten import RewrittenModel
from zeroed import zeroed_

SHUFFLE = (3, 1, 0, 2, 7, 6, 5, 4)
KEPT = [0, 2, 3, 7]


class Selecting(nn.Module):
    """A linear layer, units selected by a buffer, another layer."""

    def __init__(
        self,
        select: Callable[[Selecting, Tensor], Tensor],
        order: tuple[int, ...] = SHUFFLE,
        dtype: torch.dtype = torch.int64,
        persistent: bool = True,
    ) -> None:
        super().__init__()
        self.a, self.select = nn.Linear(6, 8), select
        width = select(Selecting.holder(order, dtype), torch.zeros(1, 8)).shape[1]
        self.b, self.c = nn.Linear(width, 8), nn.Linear(8, 3)
        self.register_buffer("order", torch.tensor(order, dtype=dtype), persistent=persistent)

    @staticmethod
    def holder(order: tuple[int, ...], dtype: torch.dtype) -> Selecting:
        held = Selecting.__new__(Selecting)
        nn.Module.__init__(held)
        held.register_buffer("order", torch.tensor(order, dtype=dtype))
        return held

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.select(self, self.a(x).relu())).relu())


def looked_up(m: Selecting, h: Tensor) -> Tensor:
    return h[:, m.order]


def index_select(m: Selecting, h: Tensor) -> Tensor:
    return h.index_select(1, m.order)


def cast(m: Selecting, h: Tensor) -> Tensor:
    return h[..., m.order.long()]


def added(m: Selecting, h: Tensor) -> Tensor:
    return h + h[:, m.order]


def there_and_again(m: Selecting, h: Tensor) -> Tensor:
    return torch.tanh(h[:, m.order])[:, m.order]


def random(model: nn.Module) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 6, dtype=torch.float64)


OWN: dict[str, Callable[[], Selecting]] = {
    "looked_up": lambda: Selecting(looked_up),
    "index_select": lambda: Selecting(index_select),
    "of_32_bits": lambda: Selecting(looked_up, dtype=torch.int32),
    "cast": lambda: Selecting(cast, dtype=torch.int32),
    "from_the_end": lambda: Selecting(looked_up, (-1, -3, 0, 2)),
    "twice_and_never": lambda: Selecting(looked_up, (0, 0, 3, 5, 3, 7)),
    "alone": lambda: Selecting(added, (2,)),
    "not_stored": lambda: Selecting(looked_up, persistent=False),
    "added": lambda: Selecting(added),
    "there_and_again": lambda: Selecting(there_and_again),
}


@pytest.mark.parametrize("name", OWN)
def test_a_buffer_is_renumbered_in_the_own_class(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OWN[name]().double()
    x = random(model)
    graph = prunus.trace(model, x)
    kept = {g.name: list(range(0, g.units, 2)) for g in graph.groups()}
    assert any(g.startswith("a") for g in kept)
    plan = Plan.from_kept(graph, kept)
    assert Plan.from_json(plan.to_json()) == plan
    smaller, proof = apply_and_verify_(copy.deepcopy(model), plan, x)
    assert proof.passed
    assert type(smaller) is Selecting
    assert smaller.a.out_features < 8
    assert smaller.order.dtype == model.order.dtype
    wanted = outputs(zeroed_(copy.deepcopy(model), graph, kept), x)[0]
    assert torch.allclose(outputs(smaller, x)[0], wanted, atol=1e-9)

    again = prunus.trace(smaller, x)  # what was renumbered is an index like any other
    assert not [g.locked for g in again.channel_groups if "index" in str(g.locked)]

    prunus.save(tmp_path / "artifact", smaller, plan, example_inputs=x)
    for factory in (None, lambda: OWN[name]().double()):
        assert torch.allclose(outputs(prunus.load(tmp_path / "artifact", factory), x)[0], wanted, atol=1e-9)


def test_each_entry_goes_with_its_unit_and_the_others_are_renumbered() -> None:
    model = Selecting(looked_up).double()
    plan = Plan.from_kept(prunus.trace(model, random(model)), {"a": KEPT})
    prunus.apply_(model, plan, random(model))
    places = {unit: place for place, unit in enumerate(KEPT)}
    assert model.order.tolist() == [places[unit] for unit in SHUFFLE if unit in KEPT]


def test_an_order_of_its_own_for_every_model_comes_from_the_artifact(tmp_path: Path) -> None:
    model = Selecting(looked_up).double()
    x = random(model)
    plan = Plan.from_kept(prunus.trace(model, x), {"a": KEPT})
    smaller = prunus.apply_(model, plan, x)
    prunus.save(tmp_path / "artifact", smaller, plan, example_inputs=x)
    other = prunus.load(tmp_path / "artifact", lambda: Selecting(looked_up, SHUFFLE[::-1]).double())
    assert torch.equal(other(x), smaller(x))


@pytest.mark.parametrize("select", [lambda m, h: h[:, list(SHUFFLE)], lambda m, h: h[:, torch.arange(7, -1, -1)]])
def test_an_index_in_the_code_is_renumbered_in_the_rewritten_graph(
    select: Callable[[Selecting, Tensor], Tensor], tmp_path: Path
) -> None:
    model = Selecting(select).double()
    x = random(model)
    graph = prunus.trace(model, x)
    plan = Plan.from_kept(graph, {"a": KEPT})
    wanted = outputs(zeroed_(copy.deepcopy(model), graph, {"a": KEPT}), x)[0]
    smaller = prunus.apply_(copy.deepcopy(model), plan, x)
    assert isinstance(smaller, RewrittenModel)
    assert smaller.state_dict().keys() == model.state_dict().keys()
    prunus.save(tmp_path / "artifact", smaller, plan, example_inputs=x)
    loaded = prunus.load(tmp_path / "artifact")
    made = prunus.load(tmp_path / "artifact", lambda: Selecting(select).double())
    for found in (smaller, copy.deepcopy(smaller), loaded, made):
        assert torch.allclose(outputs(found, x)[0], wanted, atol=1e-9)


def sorted_back(m: Selecting, h: Tensor) -> Tensor:
    return h[:, m.order].tanh()[:, m.order.argsort()]


def also_a_number(m: Selecting, h: Tensor) -> Tensor:
    return h[:, m.order] + m.order.to(h.dtype)


def of_the_input(m: Selecting, h: Tensor) -> Tensor:
    return h[:, h[0].argsort()]


@pytest.mark.parametrize("select", [sorted_back, also_a_number, of_the_input])
def test_units_stay_where_their_index_is_more_than_one(select: Callable[[Selecting, Tensor], Tensor]) -> None:
    model = Selecting(select).double()
    assert prunus.trace(model, random(model)).group("a").locked is not None


def test_a_plan_names_positions_for_every_entry_that_stays() -> None:
    model = Selecting(looked_up).double()
    plan = Plan.from_kept(prunus.trace(model, random(model)), {"a": KEPT})
    for values in ((0, 1, 2), (0, 1, 2, -1)):
        wrong = replace(plan, tensors={**plan.tensors, "order": replace(plan.tensors["order"], values=values)})
        with pytest.raises(PlanError, match="order"):
            Plan.from_json(wrong.to_json())
