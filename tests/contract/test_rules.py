"""The check of rules passes what is right and says what a wrong rule gets wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.graph.registry import RULES
from prunus.testing import check_coupling, check_rule

IMAGE, TOKENS = torch.randn(2, 6, 4, 4), torch.randn(2, 5, 6)


def custom(name: str, compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operation that torch knows and the analysis does not."""

    @torch.library.custom_op(f"prunus_rules::{name}", mutates_args=())
    def operation(x: Tensor) -> Tensor:
        return compute(x).clone()

    @operation.register_fake
    def _(x: Tensor) -> Tensor:
        return compute(x)

    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.expand(ctx.shape)

    def remember(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    operation.register_autograd(backward, setup_context=remember)
    return operation


TURNED = custom("turned", lambda x: x.flip(1))
MIXED = custom("mixed", lambda x: x + x.roll(1, 1))
MUTED = custom("muted", lambda x: torch.zeros_like(x))
LIFTED = custom("lifted", lambda x: x + 1 / x.shape[1])
HALVED = custom("halved", lambda x: x / 2)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    before = set(RULES)
    yield
    for name in set(RULES) - before:
        RULES.pop(name)


RIGHT: list[tuple[Any, tuple[Tensor, ...], dict[str, int]]] = [
    (F.silu, (IMAGE,), {}),
    (torch.add, (IMAGE, IMAGE), {}),
    (nn.BatchNorm2d(6), (IMAGE,), {}),
    (nn.AvgPool2d(2), (IMAGE,), {}),
    (nn.Conv2d(6, 6, 3, groups=6), (IMAGE,), {}),
    (nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU()), (IMAGE,), {}),
    (lambda x: x.flip(1), (IMAGE,), {}),
    (lambda x: x.flatten(1), (IMAGE,), {}),
    (lambda x: x.mean((2, 3)), (IMAGE,), {}),
    (lambda x: x.sum(1, keepdim=True), (IMAGE,), {}),
    (lambda x: F.glu(x, 1), (IMAGE,), {}),
    (lambda a, b: torch.cat([a, b], -1), (TOKENS, TOKENS[..., :3]), {"dim": -1}),
    (lambda x: x.transpose(1, 2).flip(-1).transpose(1, 2), (TOKENS,), {"dim": -1}),
    (F.gelu, (torch.randn(4, 6),), {}),
]


@pytest.mark.parametrize(("operation", "examples", "more"), RIGHT)
def test_rules_of_the_package_are_right(operation: Any, examples: tuple[Tensor, ...], more: dict[str, int]) -> None:
    check_rule(operation, *examples, **more)


WRONG: list[tuple[Callable[..., Tensor], Any, str]] = [
    (TURNED, "same", "output 0 of writers.0 is unit 0 of writers.0, but moving it moves the units [5]"),
    (MIXED, "same", "output 0 of writers.0 is unit 0 of writers.0, but moving it moves the units [1]"),
    (
        MUTED,
        "same",
        "reader is said to read the units [0, 1, 2, 3, 4, 5] of writers.0, but moving them",
    ),
    (LIFTED, "same", "cut as the rule says, the network is not the masked one"),
]


@pytest.mark.parametrize(("operation", "like", "sentence"), WRONG)
def test_wrong_rules_are_found(operation: Any, like: Any, sentence: str) -> None:
    prunus.register_operation(operation._qualname, like=like)
    with pytest.raises(AssertionError) as told:
        check_rule(operation, IMAGE)
    assert sentence in str(told.value)


def test_without_a_rule_the_units_are_locked_and_with_one_the_check_passes() -> None:
    with pytest.raises(AssertionError, match=r"units of writers\.0 are locked: no rule for prunus_rules::halved"):
        check_rule(HALVED, IMAGE)
    prunus.register_operation("prunus_rules::halved", like="same")
    check_rule(HALVED, IMAGE)


@pytest.mark.parametrize(
    ("operation", "examples", "sentence"),
    [
        (lambda x: x.softmax(1), (IMAGE,), "locked: softmax mixes the units"),
        (nn.GroupNorm(3, 6), (IMAGE,), "statistics across the units"),
        (lambda x: (x, x), (IMAGE,), "it must be one tensor"),
        (F.relu, (torch.randn(6),), "no layer for units"),
    ],
)
def test_what_cannot_be_checked_is_said(operation: Any, examples: tuple[Tensor, ...], sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_rule(operation, *examples)


def test_a_network_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    check_coupling(model, torch.randn(2, 1, 6, 6))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(AssertionError, match="no layer that writes units"):
        check_coupling(nn.Linear(2, 2), torch.randn(2, 2))
