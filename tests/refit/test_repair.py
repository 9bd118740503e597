"""`repair` as a whole: formats, batches of all sizes, refusals; the dense network stays as it is."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import DataError, PlanError, PruneError
from prunus.proof.apply import apply_and_verify_
from prunus.refit import RepairConfig, repair
from prunus.runtime.copies import copied
from zoo_nets import cbr, head


@cache
def made() -> tuple[nn.Module, prunus.Plan, Tensor]:
    """Shared by the tests: repair leaves it as it is."""
    torch.manual_seed(0)
    model = nn.Sequential(cbr(3, 12), cbr(12, 8), head(8)).eval()
    x = torch.randn(40, 3, 6, 6)
    plan = prunus.Plan.from_kept(prunus.trace(model, x[:2]), {"0.0": range(6), "1.0": range(1, 8)})
    return model, plan, x


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items()}


def test_the_same_seed_gives_the_same_weights_and_the_dense_network_stays() -> None:
    model, plan, x = made()
    before, few = weights(model), RepairConfig(least_rows=400, most_rows=400)
    one, two, other = (repair(model, plan, [(x,)], config=few, seed=s, progress=False) for s in (3, 3, 4))
    first, second, third = (weights(r.model) for r in (one, two, other))
    assert all(torch.equal(t, second[n]) for n, t in first.items())
    assert one.refits == two.refits
    assert any(not torch.equal(t, third[n]) for n, t in first.items())
    assert all(torch.equal(t, before[n]) for n, t in weights(model).items())
    assert all(r.after <= r.before for r in one.refits)


def test_what_goes_keeps_its_weights() -> None:
    model, plan, x = made()
    new = weights(repair(model, plan, [(x,)], progress=False).model)
    assert torch.equal(new["1.0.weight"][:, 6:], model[1][0].weight[:, 6:])
    assert torch.equal(new["1.0.weight"][0], model[1][0].weight[0])
    assert not torch.equal(new["1.0.weight"][1:, :6], model[1][0].weight[1:, :6])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_formats(dtype: torch.dtype) -> None:
    model, plan, x = made()
    model, x = copied(model).to(dtype), x.to(dtype)
    before = weights(model)
    done = repair(model, plan, [(x,)], progress=False)
    assert [r.reason for r in done.refits] == ["", ""]
    assert all(t.dtype == before[n].dtype for n, t in done.model.state_dict().items())
    assert all(torch.equal(t, before[n]) for n, t in weights(model).items())
    lost = {}
    for name, net in (("plain", copied(model)), ("repaired", done.model)):
        smaller, proof = apply_and_verify_(net, plan, x[:2])
        assert proof.passed
        lost[name] = float((smaller(x) - model(x)).detach().double().square().mean())
    assert lost["repaired"] < 0.3 * lost["plain"]


def test_batches_of_all_sizes_count_alike() -> None:
    model, plan, x = made()
    several = repair(model, plan, [(x[:30],), (x[30:31],), (x[31:],)], progress=False)
    whole = repair(model, plan, [(x,)], progress=False)
    for name, tensor in weights(several.model).items():
        torch.testing.assert_close(tensor, whole.model.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_no_more_examples_than_asked_for() -> None:
    model, plan, x = made()
    config = RepairConfig(examples=20)
    few = repair(model, plan, [(x[:15],), (x[15:],)], config=config, progress=False)
    same = repair(model, plan, [(x[:15],), (x[15:20],)], config=config, progress=False)
    assert few.refits == same.refits
    assert few.refits[0].samples == 20 * 36


def test_one_example_is_enough_to_run() -> None:
    model, plan, x = made()
    done = repair(model, plan, [(x[:1],)], progress=False)
    assert all(r.after <= r.before for r in done.refits)
    prunus.apply_(done.model, plan, x[:2])


class FixedBatch(nn.Module):
    """Runs on batches of four alone, once it is captured."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.cat([self.a(x[i]).relu()[None] for i in range(len(x))]))


def test_a_model_with_a_batch_size_of_its_own_sees_batches_of_that_size() -> None:
    torch.manual_seed(0)
    model, x = FixedBatch(), torch.randn(22, 5)
    plan = prunus.Plan.from_kept(prunus.trace(model, x[:4]), {"a": range(5)})
    done = repair(model, plan, [(x[:4],), (x[4:18],), (x[18:21],)], progress=False)
    assert done.refits[0].samples == 16


@pytest.mark.parametrize("data", [[], [torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8)], iter([1])])
def test_no_batches_are_refused(data: Any) -> None:
    model, plan, _ = made()
    with pytest.raises(DataError):
        repair(model, plan, data, progress=False)


def test_the_plan_of_another_model_is_refused() -> None:
    _, plan, x = made()
    with pytest.raises(PlanError):
        repair(nn.Sequential(cbr(3, 8), cbr(8, 8), head(8)), plan, [(x,)], progress=False)


def test_batches_that_the_model_does_not_run_on_are_refused() -> None:
    model, plan, x = made()
    with pytest.raises(PruneError):
        repair(model, plan, [(x,), (x[:, :2],)], progress=False)
