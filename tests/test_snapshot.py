"""Code that changes its model by running: everything is as before after tracing, scoring, proving and judging."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import prunus
from prunus.runtime.modes import eval_mode
from prunus.runtime.snapshot import state_kept


class Cache:
    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.last: Tensor | None = None


class Keeper(nn.Module):
    """Keeps something of every call in every way that Python has."""

    table = torch.empty(0)
    of_the_class: list[Tensor] = []  # noqa: RUF012 - shared on purpose

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("average", torch.zeros(8))
        self.history: list[Tensor] = []
        self.by_name: dict[str, Any] = {"inner": {"h": None}}
        self.recent, self.sizes = deque(maxlen=3), set()  # type: ignore[var-annotated]
        self.cache, self.space = Cache(), SimpleNamespace(h=None)
        self.plain = torch.zeros(8)
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.table.numel():
            self.table = torch.arange(x.shape[1]).float()[:, None]
        if not hasattr(self, "scale"):
            self.scale = torch.ones(4)
        if "late" not in self._buffers:
            self.register_buffer("late", torch.ones(4), persistent=False)
        h = torch.relu(self.a(x * self.scale * self.late + self.table))  # type: ignore[operator]
        self.calls += 1
        self.average.mul_(0.9).add_(h.detach().mean((0, 1)), alpha=0.1)
        self.plain += 1
        self.count += 1
        self.features = self.cache.last = self.space.h = self.by_name["inner"]["h"] = h
        for kept in (self.history, self.recent, self.cache.keys, self.of_the_class):
            kept.append(h)
        self.sizes.add(len(self.history))
        type(self).shared = h  # type: ignore[attr-defined]
        return self.b(h)  # type: ignore[no-any-return]


def reachable(value: Any, seen: set[int]) -> Iterator[Any]:
    """Everything that a model holds, by a walk of its own."""
    if id(value) in seen or isinstance(value, str | int | float | type(None)):
        return
    seen.add(id(value))
    yield value
    inside: list[Any] = []
    if isinstance(value, dict):
        inside = list(value.values())
    elif isinstance(value, list | tuple | set | deque):
        inside = list(value)
    elif not isinstance(value, Tensor | type) and hasattr(value, "__dict__"):
        inside = [*vars(value).values(), *(v for v in vars(type(value)).values() if isinstance(v, Tensor | list))]
    for one in inside:
        yield from reachable(one, seen)


def state(model: Keeper) -> dict[str, Any]:
    tensors = {n: t.clone() for n, t in (*model.named_parameters(), *model.named_buffers()) if n != "late"}
    kept = (model.history, model.recent, model.cache.keys, model.of_the_class, model.sizes)
    return {
        "names": sorted(vars(model)), "buffers": sorted(model._buffers), "tensors": tensors, "count": model.count,
        "lengths": [len(k) for k in kept], "plain": model.plain.clone(), "inner": model.by_name["inner"]["h"],
        "hooks": len(model._forward_hooks), "class": sorted(vars(Keeper)), "outside": (model.cache.last, model.space.h),
    }  # fmt: skip


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


@pytest.fixture
def model() -> Iterator[Keeper]:
    torch.manual_seed(0)
    yield Keeper().eval()
    Keeper.of_the_class.clear()
    if "shared" in vars(Keeper):
        del Keeper.shared  # type: ignore[attr-defined]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("method", [None, "l1", "taylor", "sbp", "dirichlet"])
def test_a_model_holds_afterwards_what_it_held_before(model: Keeper, method: str | None, warm: bool) -> None:
    x = torch.randn(4, 5, 4)
    if warm:
        with torch.no_grad():
            model(x)
    before = state(model)
    if method is None:
        graph = prunus.trace(model, x)
        assert any(g.prunable for g in graph.groups())
    else:
        data = [(x, torch.randn(4, 5, 4))]
        result = prunus.prune(model, x, method=method, target=0.5, data=data, loss_fn=F.mse_loss, progress=False)
        assert result.verification.passed
        assert not any(isinstance(v, FakeTensor) for v in reachable(result.model, set()))
    assert same(state(model), before)
    assert not any(isinstance(v, FakeTensor) for v in reachable(model, set()))
    assert type(model(x)) is Tensor


def test_what_forward_does_to_parameters_is_undone() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.a.weight.data = torch.renorm(self.a.weight.data, 2, 0, 0.1)
            return self.b(self.a(x).relu())  # type: ignore[no-any-return]

    model = Normed().eval()
    before = model.a.weight.clone()
    with eval_mode(model), torch.no_grad():
        model(torch.randn(2, 4))
        assert not torch.equal(model.a.weight, before)
    assert torch.equal(model.a.weight, before)


def test_nothing_is_touched_that_did_not_change(model: Keeper) -> None:
    versions = [t._version for t in (*model.parameters(), *model.buffers())]
    containers = [model.history, model.by_name, model.recent, model._modules]
    with state_kept(model):
        pass
    now = [model.history, model.by_name, model.recent, model._modules]
    assert [t._version for t in (*model.parameters(), *model.buffers())] == versions
    assert all(a is b for a, b in zip(containers, now, strict=True))


def test_a_module_made_by_the_first_call_is_told() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "b"):
                self.b = nn.Linear(8, 4)
            return self.b(self.a(x).relu())  # type: ignore[no-any-return]

    model, x = Late().eval(), torch.randn(2, 4)
    with pytest.raises(prunus.errors.TraceError, match="run the model once"):
        prunus.trace(model, x)
    assert not hasattr(model, "b")
    model(x)
    assert prunus.prune(model, x, method="l1", target=0.5, progress=False).verification.passed


def test_deep_inside_other_modules_too(model: Keeper) -> None:
    x = torch.randn(4, 5, 4)
    hidden = nn.Sequential(nn.Sequential(nn.Sequential(nn.Sequential(model))))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outside = [hidden]  # not among the submodules

        def forward(self, x: Tensor) -> Tensor:
            return self.outside[0](x)  # type: ignore[no-any-return]

    for outer in (hidden, Outer()):
        before = state(model)
        with eval_mode(outer), torch.no_grad():
            outer(x)
            assert not same(state(model), before)
        assert same(state(model), before)
