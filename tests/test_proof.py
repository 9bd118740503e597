"""The proof has power: wrong cuts are found in every format and beside large channels; nothing empty is proven."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import DataError, PlanError, PruneError, SurgeryError
from prunus.graph.groups import ExampleInput
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from prunus.proof.inputs import proof_inputs
from prunus.proof.judge import judge_for
from prunus.proof.observation import observe
from prunus.proof.verification import Verification
from prunus.surgery.cut import cut_
from zoo import ZOO
from zoo_nets import Net


def mlp(last: Callable[[Tensor], Any] = lambda y: y) -> nn.Module:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(6, 12), "b": nn.Linear(12, 8), "c": nn.Linear(8, 5)}
    return Net(lambda m, x: last(m.c(F.relu(m.b(F.relu(m.a(x)))))), **layers).eval()


def planned(model: nn.Module, x: Any) -> Plan:
    graph = prunus.trace(model, x)
    return Plan.from_kept(graph, {g.name: list(range(0, g.units, 2)) for g in graph.groups()})


def wrong_columns(plan: Plan, weight: str) -> Plan:
    """The reader takes the columns of the units that go."""
    edit = plan.tensors[weight]
    others = tuple(sorted(set(range(edit.shape[1])) - set(edit.keep[1])))[: len(edit.keep[1])]
    return replace(plan, tensors={**plan.tensors, weight: replace(edit, keep={**edit.keep, 1: others})})


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
LAST: dict[str, Callable[[Tensor], Any]] = {
    "classes": lambda y: y.argmax(-1),
    "signs": lambda y: y > 0,
    "complex": lambda y: torch.complex(y, y * 2),
    "a large column": lambda y: y * torch.tensor([1.0, 1, 1, 1, 1e4]),
    "a large output beside": lambda y: {"boxes": y * 1e4, "chances": (y * 1e-2).sigmoid()},
}


@pytest.mark.parametrize("last", LAST)
def test_wrong_columns_are_found_whatever_is_returned(last: str) -> None:
    model = mlp(LAST[last])
    plan = planned(model, X)
    proof = apply_and_verify_(copy.deepcopy(model), plan, X)[1]
    assert proof.passed
    assert proof.compared
    assert set(proof.batches) == {1, 2, 3, 4}
    for weight in ("b.weight", "c.weight"):
        before = copy.deepcopy(model)
        with pytest.raises(SurgeryError, match="rolled back"):
            apply_and_verify_(before, wrong_columns(plan, weight), X)
        assert all(torch.equal(a, b) for a, b in zip(before.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_wrong_columns_are_found_in_low_formats_though_biases_dominate(dtype: torch.dtype) -> None:
    model = mlp()
    with torch.no_grad():
        for layer in (model.b, model.c):
            layer.bias.add_(100.0)
    model, x = model.to(dtype), X.to(dtype)
    plan = planned(model, x)
    small, proof = apply_and_verify_(copy.deepcopy(model), plan, x)
    assert proof.passed
    assert proof.precision == ("float32" if dtype == torch.float32 else "float64")
    assert {p.dtype for p in small.parameters()} == {dtype}
    with pytest.raises(SurgeryError, match="differs"):
        apply_and_verify_(model, wrong_columns(plan, "c.weight"), x)


@pytest.mark.parametrize("statistics", [False, True])
def test_what_a_layer_made_is_noted_before_code_writes_into_it(statistics: bool) -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(6) if statistics else nn.Identity()
    net, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), norm, nn.Linear(6, 3)), torch.randn(8, 4)
    plan = Plan.from_kept(prunus.trace(net, x), {"0": [0, 2, 3, 5]})
    judge = judge_for(net, plan, x)
    judge.layers = True
    judge.seen = judge.observed(judge.inputs)
    cut_(net, plan)
    assert float(judge.seen.layers[0]["0"][0].min()) < 0
    assert judge.held(net).problem is None


def test_nothing_compared_is_nothing_proven() -> None:
    """Classes alone, and no look into the layers: equal integers are no proof."""
    model = mlp(lambda y: y.argmax(-1))
    plan = planned(model, X)
    judge = judge_for(model, plan, X)
    judge.layers, judge.seen = False, observe(model, plan, judge.inputs, mask=True, layers=False)
    cut_(model, plan)
    assert "nothing was compared" in str(judge.held(model).problem)
    assert not Verification(0.0, 1e-4, 2, True).passed


def test_readers_of_which_nothing_would_be_seen_are_named() -> None:
    model = mlp()
    with torch.no_grad():
        model.c.weight.zero_()
    proof = apply_and_verify_(model, planned(model, X), X)[1]
    assert proof.passed
    assert proof.unseen == ("c",)
    assert any(name.startswith("layer b") for name in proof.compared)


class BareAssert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), 8

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        assert y.shape[1] == self.c
        return self.b(y)


class OwnError(BareAssert):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        if y.shape[1] != self.c:
            raise KeyError
        return self.b(y)


@pytest.mark.parametrize("kind", [BareAssert, OwnError])
def test_any_exception_of_the_models_own_leads_to_the_rewritten_graph(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    result = prunus.prune(kind().eval(), x, method="l1", target=0.5, progress=False)
    assert result.verification.rewritten
    assert result.verification.passed
    assert any("takes the place of the class" in note for note in result.plan.notes)
    assert "does not run" in result.plan.explain()


def noisy(m: Any, x: Tensor) -> Tensor:
    return m.c(F.dropout(F.relu(m.a(x)), 0.5))


class Jitter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def test_noise_in_forward_is_named() -> None:
    torch.manual_seed(0)
    top = Net(noisy, a=nn.Linear(6, 12), c=nn.Linear(12, 5)).eval()
    inner = nn.Sequential(nn.Linear(6, 12), Jitter(), nn.Linear(12, 5)).eval()
    for model, place in ((top, "own forward"), (inner, "module '1'")):
        with pytest.raises(SurgeryError, match="two runs on the same input") as refusal:
            prunus.prune(model, X, method="l1", target=0.5, progress=False)
        assert place in refusal.value.what


def test_undefined_weights_are_named() -> None:
    model = mlp()
    with torch.no_grad():
        model.b.weight[1] = torch.nan
    graph = prunus.trace(model, X)
    with pytest.raises(SurgeryError, match="begin in module 'b'"):
        apply_and_verify_(model, Plan.from_kept(graph, {"a": [0, 1, 2]}), X)


def test_results_kept_in_the_model_do_not_stop_a_copy() -> None:
    model = mlp()
    model.features = model.a(X)
    with torch.enable_grad():
        assert model.features.grad_fn is not None
    result = prunus.prune(model, X, method="l1", target=0.5, progress=False)
    assert result.verification.passed
    assert model.features.grad_fn is not None


def test_without_examples_whole_numbers_lie_in_the_recorded_range() -> None:
    animal = ZOO["embedding_mlp"]
    model, tokens = animal.make(), animal.inputs(2)
    plan = planned(model, tokens)
    assert (plan.inputs[0].low, plan.inputs[0].high) == (int(tokens.min()), int(tokens.max()))
    torch.full((2, 5), 10**9)  # what unset memory may hold
    again = Plan.from_json(plan.to_json())
    made = [proof_inputs(again, None, model)[0][0] for _ in range(2)]
    assert torch.equal(*made)
    assert int(made[0].max()) < 10
    assert apply_and_verify_(model, again)[1].passed


def test_without_examples_keyword_inputs_go_by_their_names() -> None:
    animal = ZOO["keyword_inputs"]
    model, inputs = animal.make(), animal.inputs(2)
    plan = Plan.from_json(planned(model, dict(reversed(inputs.items()))).to_json())
    assert {entry.path for entry in plan.inputs} == {("image",), ("scale",)}
    assert apply_and_verify_(model, plan)[1].passed


def test_inputs_that_no_machine_holds_are_refused() -> None:
    model = mlp()
    huge = replace(planned(model, X), inputs=(ExampleInput((10**6, 10**6), "float32"),))
    with pytest.raises(PlanError, match="elements"):
        apply_and_verify_(model, huge)
    odd = replace(huge, inputs=(ExampleInput((2, 6), "bool_of_python"),))
    with pytest.raises(DataError, match="not a tensor"):
        apply_and_verify_(model, odd)


class OverTokens(nn.Module):
    """Units pass through a layer that maps tokens, in a gate behind a normalisation (gMLP)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.mix, self.b = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(5, 5), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.b(h * self.mix(self.norm(h).transpose(1, 2)).transpose(1, 2)).argmax(-1)


def test_layers_that_units_pass_through_are_judged_by_what_reads_them() -> None:
    model, x = OverTokens().eval(), torch.randn(2, 5, 6)
    result = prunus.prune(model, x, method="l1", target=0.5, allow=("inexact",), progress=False)
    assert result.model.b.in_features == 8  # type: ignore[union-attr]
    assert result.verification.passed
    assert not result.verification.rewritten
    assert not any(name.startswith("layer mix") for name in result.verification.compared)
    assert any(name.startswith("layer b") for name in result.verification.errors)


class TwoConstructions(nn.Module):
    """A norm behind code that computes another function from the width it sees: neither is the masked network's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(self.norm(y) * (2.0 if y.shape[-1] == 8 else 3.0))


def test_an_inexact_plan_is_held_against_statistics_of_what_stays() -> None:
    torch.manual_seed(0)
    model = TwoConstructions().eval()
    plan = Plan.from_kept(prunus.trace(model, X), {"stem": [0, 2, 3, 7, 5]})
    assert not plan.exact
    small, proof = apply_and_verify_(copy.deepcopy(model), plan, X)
    assert proof.rewritten
    y = F.layer_norm(model.stem(X)[:, list(plan.kept["stem"])], (5,)) * 2
    assert torch.allclose(small(X), F.linear(y, model.head.weight[:, list(plan.kept["stem"])], model.head.bias),
                          atol=1e-5)  # fmt: skip
    wrong = wrong_columns(plan, "head.weight")
    edit = replace(wrong.tensors["head.weight"], keep={1: (0, 1, 4, 6, 7)})
    with pytest.raises(SurgeryError, match="statistics of what stays"):
        apply_and_verify_(model, replace(plan, tensors={**plan.tensors, "head.weight": edit}), X)


def test_only_refusals_leave_where_the_dense_model_does_not_run() -> None:
    model = mlp()
    with pytest.raises(PruneError, match="does not run"):
        apply_and_verify_(model, planned(model, X), torch.randn(2, 7))
