"""Scaled dot-product attention in elementary operations, for an exporter that has no rule for the fused one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

FUSED = torch.ops.aten.scaled_dot_product_attention.default


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Within, `scaled_dot_product_attention` is `attend`: in the code of the model, or in nodes of a captured one."""
    nodes = [n for n in model.graph.nodes if n.target is FUSED] if isinstance(model, fx.GraphModule) else []
    _aim(model, nodes, attend)
    try:
        with _Calls():
            yield
    finally:
        _aim(model, nodes, FUSED)


def _aim(model: nn.Module, nodes: Sequence[fx.Node], target: Callable[..., Any]) -> None:
    for node in nodes:
        node.target = target
    if nodes and isinstance(model, fx.GraphModule):
        model.recompile()


class _Calls(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        called = attend if function is F.scaled_dot_product_attention else function
        return called(*args, **(kwargs or {}))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What `torch.nn.functional.scaled_dot_product_attention` computes, arguments as there.

    Args:
        query: [..., heads, L, E].
        key: [..., key heads, S, E].
        value: [..., key heads, S, V].
        attn_mask: bool (True takes part) or added to the scores; rows that take part in nothing give zeros.
        dropout_p: of the attention weights.
        is_causal: positions see themselves and those before them.
        scale: of the scores; 1 / sqrt(E) by default.
        enable_gqa: every key head serves heads / key heads heads.

    Returns:
        [..., heads, L, V].
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is None:
        weights = scores.softmax(-1)
    else:
        hidden = attn_mask.logical_not() if attn_mask.dtype == torch.bool else None
        scores = scores + attn_mask if hidden is None else scores.masked_fill(hidden, float("-inf"))
        blind = (scores == float("-inf")).all(-1, keepdim=True)
        weights = scores.softmax(-1).masked_fill(blind, 0.0)
    return (F.dropout(weights, dropout_p) if dropout_p else weights) @ value
