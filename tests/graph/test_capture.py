"""Capturing: dead code locks nothing, refusals give the advice that helps, nothing is printed, caches hold numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import prunus
from prunus.errors import ConfigError, TraceError
from prunus.graph.capture import capture
from prunus.graph.engine import operation


class Two(nn.Module):
    """Two layers, with something between them that `between` does to the features."""

    def __init__(self, between: Callable[[Tensor], Any] = lambda h: None) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(4, 8), nn.Linear(8, 4), between

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        self.between(h)
        return self.b(h)  # type: ignore[no-any-return]


def in_place(h: Tensor) -> None:
    probabilities = h.softmax(-1)
    probabilities.mul_(2)
    probabilities.view(-1).log_()


def running_sum(h: Tensor) -> None:
    total = torch.zeros(8)
    total += h.cumsum(-1).mean(0)


DEAD: dict[str, Callable[[Tensor], Any]] = {
    "mean": lambda h: h.mean(),
    "norm": lambda h: h.norm(dim=-1),
    "entropy": lambda h: h.softmax(-1).log(),
    "chunks": lambda h: [c.cumsum(-1) for c in h.chunk(3, -1)],
    "in place": in_place,
    "running sum": running_sum,
}


@pytest.mark.parametrize("kind", DEAD)
def test_dead_code_locks_nothing(kind: str) -> None:
    x = torch.randn(3, 4)
    graph = prunus.trace(Two(DEAD[kind]).eval(), x)
    assert graph.group("a").prunable
    operations = [operation(n) for n in graph.program.graph.nodes if n.op == "call_function"]
    assert operations == ["linear", "relu", "linear"]


def test_what_is_written_in_place_and_read_later_stays() -> None:
    class Written(Two):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x))
            copy = h.clone()
            copy[:, 1].mul_(3)
            copy.view(-1, 8).add_(1)
            self.seen.add_(h.mean(0))  # type: ignore[operator]
            return self.b(copy)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Written().eval(), torch.randn(3, 4)
    program = capture(model, x)
    with torch.no_grad():
        assert torch.equal(program.module()(x), model(x))
    names = [operation(n) for n in program.graph.nodes if n.op == "call_function"]
    assert {"mul", "mean"} <= set(names)
    assert names.count("add") >= 2


@functools.lru_cache
def table(width: int) -> Tensor:
    return torch.arange(width).float() + 1


def test_what_code_caches_outside_of_the_model_is_made_of_numbers() -> None:
    table.cache_clear()
    model, x = Two(lambda h: h.mul_(table(8))).eval(), torch.randn(2, 4)
    prunus.trace(model, x)
    assert not isinstance(table(8), FakeTensor)
    assert type(model(x)) is Tensor


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if h.sum() > 0:
            h = h * 2
        return self.b(h)  # type: ignore[no-any-return]


class Sized(Branching):
    def forward(self, x: Tensor) -> Tensor:
        chosen = x[x[:, 0] > 0]
        return self.b(self.a(chosen) if len(chosen) > 1 else self.a(x))  # type: ignore[no-any-return]


class Stops(Branching):
    def forward(self, x: Tensor) -> Tensor:
        raise ConfigError("recurrence", "a PackedSequence can't be taken apart", "pass padded sequences")


def refusal(model: nn.Module, **options: Any) -> Exception:
    torch.manual_seed(0)
    with pytest.raises((TraceError, ConfigError)) as raised:
        prunus.trace(model.eval(), torch.randn(6, 4), **options)
    return raised.value


def test_branches_are_to_be_followed_only_where_that_helps(capfd: pytest.CaptureFixture[str]) -> None:
    assert "pass follow_branches=True" in str(refusal(Branching()))
    followed = str(refusal(Sized(), follow_branches=True))
    assert "pass follow_branches" not in followed
    assert "a size depends on the values of the inputs" in followed
    assert "test_capture.py" in followed
    assert capfd.readouterr().err == ""


def test_a_refusal_of_our_own_out_of_forward_stays_whole() -> None:
    found = refusal(Stops())
    assert isinstance(found, ConfigError)
    assert "pass padded sequences" in str(found)


class Silent(nn.Module):
    """Layers that no group tells of."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.spare = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(3, 3)
        self.turned, self.again = nn.Linear(8, 8, bias=False), nn.GRU(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.again(self.a(x).relu())[0]
        h = self.attention(h, h, h)[0]
        return self.b(nn.functional.linear(h, torch.linalg.qr(self.turned.weight)[0]))  # type: ignore[no-any-return]


def test_every_layer_has_its_line() -> None:
    graph = prunus.trace(Silent().eval(), torch.randn(2, 5, 4))
    lines = graph.explain().splitlines()
    names = [line.split()[1].rstrip(":") for line in lines[:-1]]
    assert {"a", "b", "spare", "turned", "again", "attention"} <= set(names)
    said = dict(zip(names, lines, strict=False))
    assert "a single unit" in said["b"]
    assert "not used" in said["spare"]
    assert "linalg_qr" in said["turned"]
    assert "prunus.separate_recurrence_(model)" in said["again"]
    assert "prunus.separate_attention_(model)" in said["attention"]


def test_where_nothing_can_go_the_refusal_says_why() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(x)[0])  # type: ignore[no-any-return]

    with pytest.raises(ConfigError, match=r"nothing to score: again: .*prunus.separate_recurrence_\(model\)"):
        prunus.prune(Recurrent().eval(), torch.randn(2, 5, 4), method="l1", target=0.5, progress=False)
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with pytest.raises(ConfigError, match="0 are ignored"):
        prunus.prune(plain, torch.randn(2, 4), method="l1", target=0.5, ignored_layers=["0"], progress=False)
