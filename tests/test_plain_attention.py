"""Attention written out computes what the fused one does, and stands in for it where the ONNX exporter needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import ExportError
from prunus.formats.onnx import export_onnx
from prunus.formats.plain_attention import attend, plain_attention
from prunus.graph.capture import capture
from prunus.surgery.rewritten import as_module

MASKS = ("none", "bool", "added", "causal")


def asked(mask: str, length: int, seen: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(1)
    if mask == "bool":
        visible = torch.rand(2, 1, length, seen, generator=generator) > 0.4
        visible[0, 0, 1] = False
        return {"attn_mask": visible}
    if mask == "added":
        added = torch.randn(1, 4, length, seen, generator=generator)
        added[0, 2, 0, 1:] = float("-inf")
        return {"attn_mask": added}
    return {"is_causal": mask == "causal"}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("seen", [5, 7])
@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_it_is_the_fused_one(mask: str, seen: int, heads: int, scale: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, generator=generator, requires_grad=True)
    key = torch.randn(2, heads, seen, 8, generator=generator)
    value = torch.randn(2, heads, seen, 3, generator=generator)
    arguments = {**asked(mask, 5, seen), "scale": scale, "enable_gqa": heads != 4}
    fused = F.scaled_dot_product_attention(query, key, value, **arguments)  # type: ignore[arg-type]
    plain = attend(query, key, value, **arguments)  # type: ignore[arg-type]
    torch.testing.assert_close(plain, fused, rtol=1e-5, atol=1e-6)
    expected, found = (torch.autograd.grad(out.square().sum(), query)[0] for out in (fused, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_dropout_drops_weights() -> None:
    query, key = torch.randn(1, 1, 50, 4), torch.randn(1, 1, 40, 4)
    value = torch.eye(40)[None, None]
    weights = attend(query, key, value, dropout_p=0.25)
    whole = attend(query, key, value)
    kept = weights != 0
    torch.testing.assert_close(weights[kept], whole[kept] / 0.75)
    assert 0.2 < 1 - float(kept.float().mean()) < 0.3


class Biased(nn.Module):
    """Attention with a learned bias, expanded over the batch: the exporter has no rule for it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 24)
        self.bias = nn.Embedding(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        query, key, value = self.qkv(x).view(-1, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        distance = torch.arange(length)[:, None] - torch.arange(length) + 4
        bias = self.bias(distance).permute(2, 0, 1)[None]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)


def test_onnx_of_attention_with_a_bias(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Biased().eval(), torch.randn(3, 5, 6)
    graph = as_module(capture(model, inputs, dynamic_batch=True)).eval()
    code = graph.code
    for number, either in enumerate((model, graph)):
        assert export_onnx(either, inputs, tmp_path / f"{number}.onnx") < 1e-5
    assert graph.code == code


@pytest.mark.parametrize("captured", [False, True])
def test_it_takes_the_place_of_the_fused_one(captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(*arguments: Any, **named: Any) -> Tensor:
        calls.append(1)
        return attend(*arguments, **named)

    calls: list[int] = []
    monkeypatch.setattr("prunus.formats.plain_attention.attend", counted)
    model, inputs = Biased().eval(), torch.randn(2, 5, 6)
    expected = model(inputs)
    model = as_module(capture(model, inputs)).eval() if captured else model
    with plain_attention(model):
        torch.testing.assert_close(model(inputs), expected)
    assert len(calls) == 1
    torch.testing.assert_close(model(inputs), expected)
    assert len(calls) == 1


class Eigenvalues(nn.Module):
    """ONNX has no operation for them."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x @ x.mT)


def test_what_neither_way_exports_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="ONNX export failed"):
        export_onnx(Eigenvalues(), torch.randn(2, 3, 3), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
