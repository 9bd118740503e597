"""What holds for every method of units, also on networks of the zoo: the next one is tested by being registered."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError
from prunus.graph.groups import ChannelGroup
from prunus.learning.findings import Scores
from prunus.learning.fit import fit
from prunus.methods.base import METHODS, MaskMethod, Method, PosteriorMethod, RoutingCriterion
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.registry import resolve
from prunus.testing import check_method
from traced import traced
from zoo import ZOO

SUBJECTS = ["residual_option_b", "mobilenet_v2"]
NAMES = [name for name, kind in METHODS.items() if not issubclass(kind, MaskMethod | RoutingCriterion)]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_passes(name: str) -> None:
    check_method(METHODS[name], looks=name != "random")


@pytest.mark.parametrize("kind", [DirichletPruning])
def test_settings_of_the_released_code_pass_as_well(kind: type[DirichletPruning]) -> None:
    check_method(kind, scale="kept", joint=False, draws="batch")


def batches(name: str) -> list[tuple[Tensor, Tensor]]:
    x = ZOO[name].inputs(8)
    return [(x[:4], torch.arange(4) % 3), (x[4:], torch.arange(4) % 2)]


def quick(name: str) -> Method:
    """The method as it comes, but content with the few batches there are."""
    method = resolve(name)
    return replace(method, min_steps=0) if isinstance(method, PosteriorMethod) else method


def scored(method: Method, name: str, model: nn.Module | None = None) -> Scores:
    groups = traced(name)[2].groups()
    model = ZOO[name].make() if model is None else model
    return fit(model, groups, method, batches(name), F.cross_entropy, num_data=8, precision="fp32")


def reordered(model: nn.Module, group: ChannelGroup, order: Tensor) -> nn.Module:
    """A copy that computes the same function, with the group's units in another order."""
    copied = copy.deepcopy(model)
    tensors = {**dict(copied.named_parameters()), **dict(copied.named_buffers())}
    with torch.no_grad():
        for slot in group.slots:
            tensors[slot.tensor].copy_(tensors[slot.tensor].index_select(slot.dim, order))
    return copied


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("name", NAMES)
def test_scores_of_coupled_units_are_finite_and_follow_them(name: str, subject: str) -> None:
    method = quick(name)
    if isinstance(method, PosteriorMethod):
        # gates that are cut at 1 without noise see no data until they open less: steps that get there
        method = replace(method, estimator="point", lr=0.05)
    model, groups = ZOO[subject].make(), traced(subject)[2].groups()
    order = torch.randperm(groups[0].units, generator=torch.Generator().manual_seed(1))
    other, x = reordered(model, groups[0], order), ZOO[subject].inputs(2)
    torch.testing.assert_close(other(x), model(x))
    one, two = scored(method, subject, model).values, scored(method, subject, other).values
    assert list(one) == [g.name for g in groups]
    for group in groups:
        value = one[group.name]
        assert value.shape == (group.units,)
        assert bool(torch.isfinite(value).all())
        assert len(set(value.tolist())) > 1
        moved = value[order] if group is groups[0] else value
        if name != "random":
            torch.testing.assert_close(two[group.name], moved, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_leaves_the_model_and_the_random_state_as_they_were(name: str) -> None:
    model = ZOO["plain_cnn"].make().train()
    model[0].eval()  # type: ignore[operator]
    next(iter(model.parameters())).requires_grad_(False)
    flags = [m.training for m in model.modules()]
    needs = [p.requires_grad for p in model.parameters()]
    before, random = {n: t.clone() for n, t in model.state_dict().items()}, torch.random.get_rng_state()
    scores = scored(quick(name), "plain_cnn", model)
    assert scores.method == name
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    if issubclass(METHODS[name], PosteriorMethod):
        assert set(scores.posteriors) == set(scores.values)
    assert flags == [m.training for m in model.modules()]
    assert needs == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_a_residual_network_make_a_plan_that_can_be_proven(name: str) -> None:
    model, x = ZOO["residual_option_b"].make(), ZOO["residual_option_b"].inputs(2)
    scores = scored(quick(name), "residual_option_b", model)
    kept = {n: v.topk(len(v) // 2).indices.tolist() for n, v in scores.values.items()}
    plan = prunus.Plan.from_kept(traced("residual_option_b")[2], kept, method=name)
    assert prunus.apply_(model, plan, x) is model


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_score_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="nothing to score"):
        fit(nn.Linear(2, 2), [], quick(name), [], F.cross_entropy, num_data=1)


def test_few_data_are_passed_over_until_the_steps_are_done() -> None:
    seen = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return F.cross_entropy(outputs, targets)

    model, x = ZOO["mlp"].make(), ZOO["mlp"].inputs(8)
    groups = prunus.trace(model, x).groups()
    data = [(x[i : i + 2], torch.zeros(2, dtype=torch.long)) for i in range(0, 6, 2)]
    fit(model, groups, DirichletPruning(min_steps=10), data, loss, num_data=6)
    assert seen == 12
