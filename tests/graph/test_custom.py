"""Operations from outside: locked with a reason, until somebody says what they are like; wrong words are found out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError, PruneError, SurgeryError
from prunus.graph.listing import page
from prunus.graph.registry import RULES, rule
from prunus.graph.resizing import Resizing
from prunus.graph.rules.movement import view
from prunus.proof.apply import apply_and_verify_
from prunus.surgery.rewritten import RewrittenModel

BUILT_IN = frozenset(RULES)


@torch.library.custom_op("prunus_tests::soft_gate", mutates_args=())
def soft_gate(x: Tensor, y: Tensor) -> Tensor:
    return x * y.sigmoid()


@soft_gate.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(x)


soft_gate.register_autograd(
    lambda ctx, g: (g * ctx.saved_tensors[1].sigmoid(), torch.zeros_like(g)),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@torch.library.custom_op("prunus_tests::reversed_channels", mutates_args=())
def reversed_channels(x: Tensor) -> Tensor:
    return x.flip(1).clone()


@reversed_channels.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


reversed_channels.register_autograd(lambda ctx, g: g.flip(1))


@torch.library.custom_op("prunus_tests::as_image", mutates_args=())
def as_image(x: Tensor, channels: int) -> Tensor:
    return x.reshape(len(x), channels, -1).clone()


@as_image.register_fake
def _(x: Tensor, channels: int) -> Tensor:
    return x.new_empty(x.shape[0], channels, x.shape[1] // channels)


as_image.register_autograd(lambda ctx, g: (g.flatten(1), None))


@torch.library.custom_op("prunus_tests::doubled", mutates_args=())
def doubled(x: Tensor, training: bool) -> Tensor:
    return 2 * x if training else x.clone()


@doubled.register_fake
def _(x: Tensor, training: bool) -> Tensor:
    return torch.empty_like(x)


doubled.register_autograd(lambda ctx, g: (g, None))


class Held(nn.Module):
    """Its code holds the number of channels, as an argument of an operation that is not torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 12), nn.Conv1d(6, 4, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        pairs = as_image(doubled(self.first(x), self.training), 6)
        return self.head(self.second(pairs.relu()).flatten(1))


class Asked(nn.Module):
    """Queries go through an operation that is not torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        scores = doubled(self.queries(x), False) @ doubled(self.keys(x), False).transpose(1, 2)
        return scores.softmax(-1) @ self.values(x)


def channels_left(call: Resizing) -> None:
    assert call.after is not None
    call.arguments[1] = call.resized(call.arguments[1], call.after, 1)


class Net(nn.Module):
    def __init__(self, reverses: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.head, self.reverses = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2), reverses

    def forward(self, x: Tensor) -> Tensor:
        if self.reverses:
            return self.head(reversed_channels(self.first(x)))
        return self.head(soft_gate(self.first(x), self.second(x)))


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    for name in [name for name in RULES if "::" in name and name not in BUILT_IN]:
        RULES.pop(name)


def test_five_lines_make_it_prunable() -> None:
    model, x = Net(), torch.randn(3, 4)
    assert "no rule for prunus_tests::soft_gate" in (prunus.trace(model, x).group("first").locked or "")
    prunus.register_operation("prunus_tests::soft_gate", like="elementwise")
    graph = prunus.trace(model, x)
    assert {s.tensor for s in graph.group("first").writers} == {"first.weight", "second.weight"}
    smaller, proof = apply_and_verify_(model, prunus.Plan.from_kept(graph, {"first": [1, 4, 5]}), x)
    assert proof.passed
    assert smaller.second.weight.shape == (3, 4)


def test_a_wrong_word_is_found_out_by_the_proof() -> None:
    prunus.register_operation("prunus_tests::reversed_channels", like="same")
    model, x = Net(reverses=True), torch.randn(3, 4)
    plan = prunus.Plan.from_kept(prunus.trace(model, x), {"first": [0, 1, 2]})
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(SurgeryError, match="rolled back"):
        prunus.apply_(model, plan, x)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_sizes_that_the_code_holds_are_rewritten_as_the_rule_says() -> None:
    prunus.register_operation("prunus_tests::as_image", like=view, rewrite=channels_left)
    prunus.register_operation("prunus_tests::doubled", like="same", training=1)
    model, x = Held(), torch.randn(3, 4)
    graph = prunus.trace(model, x)
    group = next(g for g in graph.groups() if any(s.tensor == "second.weight" for s in g.slots))
    plan = prunus.Plan.from_kept(graph, {group.name: [0, 2, 3, 5]})
    smaller, proof = apply_and_verify_(model, plan, x)
    assert proof.passed
    assert isinstance(smaller, RewrittenModel)
    assert smaller.second.weight.shape == (4, 4, 1)
    smaller.train()
    trained = smaller(x)
    smaller.eval()
    assert not torch.equal(trained, smaller(x))


def test_without_a_rewriter_the_size_is_found_out_and_nothing_is_changed() -> None:
    prunus.register_operation("prunus_tests::as_image", like=view)
    prunus.register_operation("prunus_tests::doubled", like="same")
    model, x = Held(), torch.randn(3, 4)
    graph = prunus.trace(model, x)
    group = next(g for g in graph.groups() if any(s.tensor == "second.weight" for s in g.slots))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(PruneError):
        prunus.apply_(model, prunus.Plan.from_kept(graph, {group.name: [0, 2, 3, 5]}), x)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_gate_stands_before_an_operation_that_leaves_zeros_zero() -> None:
    model, x = Asked(), torch.randn(2, 5, 8)
    prunus.register_operation("prunus_tests::doubled", like="same")
    assert "prunus_tests::doubled comes between" in (prunus.trace(model, x).group("queries").locked or "")
    prunus.register_operation("prunus_tests::doubled", like="same", zero_stays_zero=True)
    graph = prunus.trace(model, x)
    assert graph.group("queries").prunable
    smaller, proof = apply_and_verify_(model, prunus.Plan.from_kept(graph, {"queries": [0, 2, 5]}), x)
    assert proof.passed
    assert smaller.keys.weight.shape == (3, 8)


def test_two_rules_for_one_operation_of_this_package_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="two rules for softmax"):
        rule("softmax")(view)


def test_the_page_of_operations_is_that_of_the_registry() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert text == page(), "python -m prunus.graph.listing > docs/operations.md"
    assert all(found.help for found in RULES.values())


@pytest.mark.parametrize(
    ("operator", "like"),
    [("prunus_tests::nothing", "same"), ("soft_gate", "same"), ("prunus_tests::soft_gate", "magic")],
)
def test_what_torch_does_not_know_is_refused(operator: str, like: str) -> None:
    with pytest.raises(ConfigError, match="operation"):
        prunus.register_operation(operator, like)  # type: ignore[arg-type]


def test_a_custom_operation_does_not_replace_torchs_own_of_the_same_name() -> None:
    @torch.library.custom_op("prunus_tests::softmax", mutates_args=())
    def softmax(x: Tensor) -> Tensor:
        return x.clamp_min(0)

    before = RULES["softmax"]
    prunus.register_operation("prunus_tests::softmax", like="channels")
    assert RULES["softmax"] is before
    assert RULES["prunus_tests::softmax"] is not before
