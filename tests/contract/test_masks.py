"""What holds for every method of weights in the registry: the next one is tested by being registered."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError
from prunus.masks.layers import layer_of
from prunus.masks.patterns import Pattern
from prunus.methods.base import METHODS, MaskMethod
from prunus.methods.registry import resolve
from prunus.plan.plan import Plan
from prunus.proof.apply import apply_and_verify_
from prunus.proof.weightmasks import mask_of, masks_hold

NAMES = [name for name, kind in METHODS.items() if issubclass(kind, MaskMethod)]
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PATTERNS = ["weight 25%", "kernel 50%", "2:4", "weight 30% shared"]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 3),
    ).eval()  # fmt: skip


def batches() -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return list(zip(x.split(16), (torch.arange(48) % 3).split(16), strict=True))


def quick(name: str, **settings: Any) -> MaskMethod:
    method = replace(resolve(name), **{"epochs": 1, "tune_epochs": 1, **settings})  # type: ignore[type-var]
    assert isinstance(method, MaskMethod)
    return method


def pruned(model: nn.Module, method: MaskMethod, target: Any, **options: Any) -> prunus.Result:
    return prunus.prune(
        model, X, method=method, target=target, data=batches(), loss_fn=F.cross_entropy, progress=False, **options
    )


@pytest.mark.parametrize("name", NAMES)
def test_is_its_own_configuration(name: str) -> None:
    method = resolve(name)
    assert is_dataclass(method)
    assert method.name == name
    assert method == replace(method)
    for field in fields(method):
        with pytest.raises(FrozenInstanceError):
            setattr(method, field.name, None)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", NAMES)
def test_exactly_k_stay_and_the_plan_makes_the_masked_network_of_the_dense_one(name: str, pattern: str) -> None:
    dense = net()
    before = {n: t.clone() for n, t in dense.state_dict().items()}
    result = pruned(dense, quick(name), pattern)
    assert all(torch.equal(before[n], t) for n, t in dense.state_dict().items())
    assert result.verification.passed
    assert result.masked is not None
    assert [p.module for p in result.plan.patterns] == ["2", "6"]
    assert (result.plan.method, result.plan.asked) == (name, pattern)
    plan = Plan.from_json(result.plan.to_json())
    expected = net()
    with torch.no_grad():
        for p in plan.patterns:
            mask, layer = mask_of(p), layer_of(expected, p.module)
            assert torch.equal(mask, result.masked.masks[p.module])
            assert bool((mask.sum(1) == p.k).all())
            on_weight = Pattern.parse(pattern).layout(layer, p.module).on_weight(mask.float())
            layer.weight.mul_(on_weight)
            assert bool((layer_of(result.model, p.module).weight * (1 - on_weight) == 0).all())
    masked, proof = apply_and_verify_(net(), plan, X)
    assert proof.passed
    assert all(torch.equal(t, expected.state_dict()[n]) for n, t in masked.state_dict().items())
    assert torch.equal(masked(X), expected(X))
    assert masks_hold(result.model, plan, X) == (0.0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_of_a_frozen_network_the_plan_is_the_result(name: str) -> None:
    masks = {"2": "kernel 50%", "8": "weight 50%"}
    result = pruned(net(), quick(name, train_weights=False), masks, repair=False)
    again = prunus.apply_(net(), result.plan, X)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in result.model.state_dict().items())
    assert [p.pattern for p in result.plan.patterns] == ["kernel 50%", "weight 50%"]
    assert result.plan.asked == "2: kernel 50%, 8: weight 50%"


@pytest.mark.parametrize("name", NAMES)
def test_filters_are_taken_out_by_an_ordinary_plan(name: str) -> None:
    result = pruned(net(), quick(name), "filter 50%")
    assert result.plan.patterns == ()
    assert {g.name: len(g.kept) for g in result.plan.groups} == {"2": 4, "6": 6}
    assert result.verification.passed
    smaller = prunus.apply_(net(), result.plan, X)
    assert [p.shape for p in smaller.parameters()] == [p.shape for p in result.model.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name: str) -> None:
    torch.manual_seed(1)
    one = pruned(net(), quick(name), "weight 25%", seed=5)
    torch.manual_seed(2)
    two, other = (pruned(net(), quick(name), "weight 25%", seed=s) for s in (5, 6))
    assert all(torch.equal(t, two.model.state_dict()[n]) for n, t in one.model.state_dict().items())
    assert one.plan == two.plan
    assert one.masked is not None
    assert other.masked is not None
    assert not torch.equal(one.masked.logits["2"], other.masked.logits["2"])


@pytest.mark.parametrize("name", NAMES)
def test_leaves_the_random_state_and_no_hooks(name: str) -> None:
    model, random = net().train(), torch.random.get_rng_state()
    result = pruned(model, quick(name), "weight 25%")
    assert torch.equal(random, torch.random.get_rng_state())
    assert model.training
    for network in (model, result.model):
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())
        assert not any(hasattr(m, "parametrizations") for m in network.modules())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "macs<=50%"}, "a budget"),
        ({"target": 0.5}, "a fraction of the units"),
        ({"target": {"2": 4}}, "counts by hand"),
        ({"target": "weight 0%"}, "not a pattern"),
        ({"target": "anything"}, "not a pattern"),
        ({"target": {"none": "2:4"}}, "no layer of that name"),
        ({"target": {"2": "2:4"}, "ignored_layers": ["6"]}, "leave one of them out"),
        ({"target": "2:4", "allow": ("head_dims",)}, "no use for it"),
        ({"target": "2:4", "allocation": prunus.Allocation()}, "nothing to allocate"),
        ({"target": "2:4", "checkpoint": "stages.pt"}, "no stages"),
        ({"target": "2:4", "ignored_layers": ["*"]}, "no layer is left"),
        ({"target": "kernel 3/7"}, "nearest that fits"),
    ],
    ids=str,
)
def test_what_it_cannot_take_is_refused_before_any_work(name: str, options: dict[str, Any], said: str) -> None:
    def never(*_: Any) -> Tensor:
        raise AssertionError("the work has begun")

    with pytest.raises(ConfigError, match=said):
        prunus.prune(net(), X, method=name, data=batches(), loss_fn=never, **options)


@pytest.mark.parametrize("name", NAMES)
def test_drawn_masks_are_compared_on_the_validation_batches(name: str) -> None:
    seen: list[float] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            seen.append(float(targets[0]))
        return F.cross_entropy(outputs, targets)

    data = prunus.data.Splits([(x, torch.zeros_like(y)) for x, y in batches()], [(X, torch.ones(4, dtype=torch.long))])
    method = quick(name, best_of=2)
    prunus.prune(net(), X, method=method, target="weight 50%", data=data, loss_fn=loss, progress=False)
    assert set(seen) == {1.0}


def test_layers_are_chosen_by_one_matcher() -> None:
    model = copy.deepcopy(net())
    method = quick(NAMES[0])
    for ignored in (["6"], [model[6]], [nn.Linear]):
        assert [p.module for p in pruned(model, method, "weight 50%", ignored_layers=ignored).plan.patterns] == ["2"]
