"""Groups across which a normalisation takes statistics: only when asked, and then as the kept units alone would do."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.proof.apply import apply_and_verify_
from zoo_attention import SIZE, WIDTH, WidthInCode


class Normed(nn.Module):
    """A residual stream behind layer norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.up = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 12)
        self.down, self.last, self.head = nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(self.last(x))


def made() -> tuple[Normed, Tensor]:
    torch.manual_seed(0)
    model = Normed().eval()
    for norm in (model.norm, model.last):
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias, 0.0, 0.3)
    return model, torch.randn(4, 5)


def test_the_stream_is_left_alone_unless_asked() -> None:
    model, x = made()
    graph = prunus.trace(model, x)
    assert [g.name for g in graph.groups()] == ["up"]
    assert [g.name for g in graph.groups(inexact=True)] == ["stem", "up"]
    assert "inexact   stem: 8 units" in graph.explain()
    result = prunus.prune(model, x, method="l1", target=0.5)
    assert result.model.stem.out_features == 8
    assert result.verification.exact


def test_what_is_left_computes_with_the_statistics_of_what_is_left() -> None:
    model, x = made()
    kept = [0, 2, 3, 7]
    plan = prunus.Plan.from_kept(prunus.trace(model, x), {"stem": kept})
    smaller, proof = apply_and_verify_(copy.deepcopy(model), plan, x)
    assert not proof.exact
    assert proof.max_error < 1e-6
    assert proof.passed

    def norm(layer: nn.LayerNorm, y: Tensor) -> Tensor:
        part = y[:, kept]
        return ((part - part.mean(1, keepdim=True)) / (part.var(1, correction=0, keepdim=True) + layer.eps).sqrt()
                * layer.weight[kept] + layer.bias[kept])  # fmt: skip

    y = model.stem(x)
    y = y + model.down(F.gelu(F.linear(norm(model.norm, y), model.up.weight[:, kept], model.up.bias)))
    wanted = F.linear(norm(model.last, y), model.head.weight[:, kept], model.head.bias)
    assert torch.allclose(smaller(x), wanted, atol=1e-5)
    assert smaller.norm.normalized_shape == (4,)


def test_asked_for_the_stream_goes_too() -> None:
    model, x = made()
    result = prunus.prune(model, x, method="l1", target=0.5, allow=("inexact",))
    assert result.model.stem.out_features < 8
    assert not result.plan.exact
    assert torch.isfinite(result.model(x)).all()


class RootMeanSquare(nn.Module):
    """RMSNorm written out, as language models do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()


class UnitLength(nn.Module):
    """Divided by its length, and scaled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("kind", [RootMeanSquare, UnitLength])
def test_norms_written_out_are_norms(kind: type[nn.Module]) -> None:
    """A mean of squares changes with what is gone; a length does not change with zeros, so it is exact."""
    torch.manual_seed(0)
    model, x = Normed().eval(), torch.randn(4, 5)
    model.norm, model.last = kind(8), kind(8)  # type: ignore[assignment]
    graph = prunus.trace(model, x)
    exact = kind is UnitLength
    assert [g.name for g in graph.groups()] == (["stem", "up"] if exact else ["up"])
    assert [g.name for g in graph.groups(inexact=True)] == ["stem", "up"]
    kept = [0, 2, 3, 7]
    smaller, proof = apply_and_verify_(copy.deepcopy(model), prunus.Plan.from_kept(graph, {"stem": kept}), x)
    assert proof.exact == exact
    assert proof.max_error < 1e-6
    y = model.stem(x)[:, kept]
    part = kind(4)
    part.weight = nn.Parameter(model.norm.weight[kept])
    y = y + F.linear(F.gelu(F.linear(part(y), model.up.weight[:, kept], model.up.bias)), model.down.weight[kept],
                     model.down.bias[kept])  # fmt: skip
    part.weight = nn.Parameter(model.last.weight[kept])
    assert torch.allclose(smaller(x), F.linear(part(y), model.head.weight[:, kept], model.head.bias), atol=1e-5)


def test_two_constructions_must_agree_where_no_mask_can_tell() -> None:
    """Half of the dimensions of every head in a narrower stream: the class would take them for half of the heads."""
    torch.manual_seed(0)
    model, x = WidthInCode().eval(), torch.randn(4, 5, 6)
    graph = prunus.trace(model, x)
    half = [u for u in range(WIDTH) if u % SIZE < SIZE // 2]
    plan = prunus.Plan.from_kept(graph, {"stem": list(range(8)), "q": half, "v": half})
    assert not plan.exact
    smaller, proof = apply_and_verify_(model, plan, x)
    assert proof.rewritten
    assert proof.passed
    assert "statistics of what stays" in proof.reference
    assert smaller.stem.weight.shape == (8, 6)
    alone = prunus.Plan.from_kept(graph, {"stem": list(range(8))})
    assert not apply_and_verify_(model, alone, x)[1].rewritten


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_old_keyword_takes_the_stream_too() -> None:
    model, x = made()
    old = prunus.prune(model, x, method="l1", target=0.5, inexact=True, progress=False)  # type: ignore[call-arg]
    new = prunus.prune(model, x, method="l1", target=0.5, allow=("inexact",), progress=False)
    assert old.plan == new.plan
    assert new.plan != prunus.prune(model, x, method="l1", target=0.5, progress=False).plan
