"""The packed attention module taken apart: the same outputs in every way of calling it, and heads that can go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.errors import ConfigError
from prunus.layers.attention import SeparateAttention, separate_attention_
from prunus.proof.apply import apply_and_verify_


def packed(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False}, {"kdim": 5, "vdim": 7}])
@pytest.mark.parametrize("need_weights", [True, False])
def test_outputs_are_the_packed_module_s(options: dict[str, Any], need_weights: bool) -> None:
    module = packed(**options)
    query, key, value = (
        torch.randn(4, 4, 12),
        torch.randn(4, 4, options.get("kdim", 12)),
        torch.randn(4, 4, options.get("vdim", 12)),
    )
    apart = SeparateAttention(module)
    wanted, weights = module(query, key, value, need_weights=need_weights)
    found, own = apart(query, key, value, need_weights=need_weights)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert (own is None) == (weights is None)
    if own is not None:
        assert torch.allclose(own, weights, atol=1e-5)
    assert sum(p.numel() for p in apart.parameters()) == sum(p.numel() for p in module.parameters())


def masks() -> list[dict[str, Tensor]]:
    causal = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
    padded = torch.tensor([[False, False, False, True]] * 2)
    per_head = torch.randn(6, 4, 4)
    return [{"attn_mask": causal}, {"key_padding_mask": padded}, {"attn_mask": per_head},
            {"attn_mask": causal.float() * -9, "key_padding_mask": padded.float() * -9}]  # fmt: skip


@pytest.mark.parametrize("mask", masks())
def test_masks_mean_what_they_meant(mask: dict[str, Tensor]) -> None:
    module, x = packed(batch_first=True), torch.randn(2, 4, 12)
    wanted, weights = module(x, x, x, average_attn_weights=False, **mask)
    found, own = SeparateAttention(module)(x, x, x, average_attn_weights=False, **mask)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(own, weights, atol=1e-5)


def test_one_example_without_a_batch() -> None:
    module, x = packed(), torch.randn(4, 12)
    assert torch.allclose(SeparateAttention(module)(x, x, x)[0], module(x, x, x)[0], atol=1e-5)


def test_heads_of_an_encoder_can_go() -> None:
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
    model = nn.Sequential(
        nn.Linear(5, 12), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(12, 2)
    )
    model.eval()
    x = torch.randn(2, 4, 5)
    wanted = model(x).detach()
    separate_attention_(model)
    assert torch.allclose(model(x), wanted, atol=1e-5)
    graph = prunus.trace(model, x)
    heads = [g.name for g in graph.groups() if g.heads_of is not None]
    assert heads == ["1.layers.0.self_attn.q.heads", "1.layers.1.self_attn.q.heads"]
    smaller, proof = apply_and_verify_(model, prunus.Plan.from_kept(graph, {name: [0, 2] for name in heads}), x)
    assert proof.passed
    assert not proof.rewritten
    assert smaller.get_submodule("1.layers.0.self_attn").num_heads == 2


def test_extra_keys_are_refused_and_the_model_stays() -> None:
    model = nn.Sequential(packed(), packed(add_bias_kv=True))
    with pytest.raises(ConfigError, match="'1'"):
        separate_attention_(model)
    assert isinstance(model[0], nn.MultiheadAttention)


def test_what_is_frozen_stays_frozen_each_tensor_for_itself() -> None:
    assert not any(p.requires_grad for p in SeparateAttention(packed().requires_grad_(False)).parameters())
    assert all(p.requires_grad for p in SeparateAttention(packed()).parameters())
    module = packed(kdim=5, vdim=7)
    frozen = (module.k_proj_weight, module.in_proj_bias, module.out_proj.weight)
    for parameter in frozen:
        parameter.requires_grad_(False)
    with torch.no_grad():
        apart = SeparateAttention(module)
    assert {n for n, p in apart.named_parameters() if p.requires_grad} == {"q.weight", "v.weight", "out_proj.bias"}
