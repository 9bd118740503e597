"""Operations from outside: locked with a reason, until somebody says what they are like; wrong words are found out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError, SurgeryError
from prunus.graph.engine import RULES
from prunus.proof.apply import apply_and_verify_

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
