"""What holds for every method of units in the registry, whatever it is: the next one is tested by being registered."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError
from prunus.graph.groups import ChannelGroup
from prunus.learning.findings import Scores
from prunus.learning.fit import fit
from prunus.methods.base import GradientCriterion, MaskMethod, Method, PosteriorMethod, WeightCriterion
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.registry import METHODS as ALL
from prunus.methods.registry import resolve
from traced import traced
from zoo import ZOO

METHODS = {name: kind for name, kind in ALL.items() if not issubclass(kind, MaskMethod)}
SUBJECTS = ["plain_cnn", "residual_option_b", "mobilenet_v2"]


def batches(name: str) -> list[tuple[Tensor, Tensor]]:
    x = ZOO[name].inputs(8)
    return [(x[:4], torch.arange(4) % 3), (x[4:], torch.arange(4) % 2)]


def quick(name: str) -> Method:
    """The method as it comes, but content with the few batches there are."""
    method = resolve(name)
    return replace(method, min_steps=0) if isinstance(method, PosteriorMethod) else method


def scored(method: Method, name: str, seed: int = 0) -> Scores:
    model = ZOO[name].make()
    groups = traced(name)[2].groups()
    return fit(model, groups, method, batches(name), F.cross_entropy, num_data=8, seed=seed, precision="fp32")


@pytest.mark.parametrize("name", METHODS)
def test_is_its_own_configuration(name: str) -> None:
    method = resolve(name)
    assert is_dataclass(method)
    assert method.name == name
    assert method == replace(method)  # type: ignore[type-var]
    assert isinstance(method, WeightCriterion | GradientCriterion | PosteriorMethod)
    for field in fields(method):  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(method, field.name, None)


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("name", METHODS)
def test_scores_are_one_finite_number_per_unit(name: str, subject: str) -> None:
    groups = traced(subject)[2].groups()
    scores = scored(quick(name), subject)
    assert scores.method == name
    assert list(scores.values) == [g.name for g in groups]
    for group in groups:
        value = scores.values[group.name]
        assert value.shape == (group.units,)
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert value.device.type == "cpu"
        assert bool(torch.isfinite(value).all())
        assert len(set(value.tolist())) > 1


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_decides(name: str) -> None:
    torch.manual_seed(1)
    one = scored(quick(name), "plain_cnn", seed=5)
    torch.manual_seed(2)
    two = scored(quick(name), "plain_cnn", seed=5)
    assert all(torch.equal(one.values[g], two.values[g]) for g in one.values)


@pytest.mark.parametrize("name", METHODS)
def test_leaves_model_and_random_state_as_they_were(name: str) -> None:
    model = ZOO["plain_cnn"].make().train()
    model[0].eval()  # type: ignore[operator]
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    needs = [p.requires_grad for p in model.parameters()]
    random = torch.random.get_rng_state()
    groups = traced("plain_cnn")[2].groups()
    fit(model, groups, quick(name), batches("plain_cnn"), F.cross_entropy, num_data=8, precision="fp32")

    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert flags == [m.training for m in model.modules()]
    assert needs == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert torch.equal(random, torch.random.get_rng_state())


def reordered(model: nn.Module, group: ChannelGroup, order: Tensor) -> nn.Module:
    """A copy that computes the same function, with the group's units in another order."""
    copied = copy.deepcopy(model)
    tensors = {**dict(copied.named_parameters()), **dict(copied.named_buffers())}
    with torch.no_grad():
        for slot in group.slots:
            tensors[slot.tensor].copy_(tensors[slot.tensor].index_select(slot.dim, order))
    return copied


def without_noise(method: Method) -> Method:
    """The same method without draws: noise belongs to positions, so draws would hide what is asked for."""
    return replace(method, estimator="point") if isinstance(method, PosteriorMethod) else method


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("name", [n for n in METHODS if n != "random"])
def test_the_order_of_units_does_not_matter(name: str, subject: str) -> None:
    method, model, x = without_noise(quick(name)), ZOO[subject].make(), ZOO[subject].inputs(2)
    groups = traced(subject)[2].groups()
    order = torch.randperm(groups[0].units, generator=torch.Generator().manual_seed(1))
    other = reordered(model, groups[0], order)
    torch.testing.assert_close(other(x), model(x))
    data = batches(subject)
    one = fit(model, groups, method, data, F.cross_entropy, num_data=8, precision="fp32").values
    two = fit(other, groups, method, data, F.cross_entropy, num_data=8, precision="fp32").values
    torch.testing.assert_close(two[groups[0].name], one[groups[0].name][order], rtol=1e-3, atol=1e-5)
    for group in groups[1:]:
        torch.testing.assert_close(two[group.name], one[group.name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if issubclass(m, PosteriorMethod)])
def test_posteriors_answer_for_every_group(name: str) -> None:
    scores = scored(quick(name), "plain_cnn")
    assert set(scores.posteriors) == set(scores.values)
    for group, posterior in scores.posteriors.items():
        units = len(scores.values[group])
        low, high = posterior.interval()
        assert posterior.rsample(3).shape == (3, units)
        assert bool((low <= high).all())
        assert posterior.complexity().ndim == 0
        probability = posterior.keep_probability(units // 2)
        assert float(probability.sum()) == pytest.approx(units // 2, rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_scores_make_a_plan_that_can_be_proven(name: str) -> None:
    model, x = ZOO["residual_option_b"].make(), ZOO["residual_option_b"].inputs(2)
    graph = traced("residual_option_b")[2]
    scores = fit(model, graph.groups(), quick(name), batches("residual_option_b"), F.cross_entropy, num_data=8)
    kept = {n: v.topk(len(v) // 2).indices.tolist() for n, v in scores.values.items()}
    plan = prunus.Plan.from_kept(graph, kept, method=name)
    assert prunus.apply_(model, plan, x) is model


@pytest.mark.parametrize("name", METHODS)
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
