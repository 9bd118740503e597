"""`nn.MultiheadAttention` taken apart into ordinary layers, so that its heads can be found, gated and removed.

The packed module multiplies by its weights inside one function, where no gate can stand. The separate one computes the
same from linear layers of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.layers.submodules import replace_submodules_
from prunus.runtime.entry import entry


class SeparateAttention(nn.Module):
    """Multi-head attention with layers `q`, `k`, `v` and `out_proj`; call and results are those of the packed module.

    Args:
        packed: the module to take apart; its numbers are copied, its flags kept.
        name: for messages.

    Raises:
        ConfigError: it has extra keys and values (`add_bias_kv`, `add_zero_attn`).
    """

    def __init__(self, packed: nn.MultiheadAttention, name: str = "attention") -> None:
        super().__init__()
        if packed.bias_k is not None or packed.bias_v is not None or packed.add_zero_attn:
            what = "it adds keys and values of its own (add_bias_kv or add_zero_attn)"
            raise ConfigError(f"module {name!r}", what, "leave it as it is: its heads stay locked")
        self.num_heads, self.head_dim = packed.num_heads, packed.head_dim
        self.batch_first, self.dropout = packed.batch_first, packed.dropout
        width = packed.embed_dim
        if packed.in_proj_weight is None:
            parts = (packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight)
            weights = [(part, part.requires_grad) for part in parts]
        else:
            weights = [(part, packed.in_proj_weight.requires_grad) for part in packed.in_proj_weight.split(width)]
        bias = packed.in_proj_bias
        biases = (None,) * 3 if bias is None else bias.split(width)
        trainable = bias is not None and bias.requires_grad
        self.q, self.k, self.v = (
            _linear(weight, learned, own, trainable) for (weight, learned), own in zip(weights, biases, strict=True)
        )
        out = packed.out_proj
        self.out_proj = _linear(
            out.weight, out.weight.requires_grad, out.bias, out.bias is not None and out.bias.requires_grad
        )
        # What nn.TransformerEncoderLayer asks its attention before it takes a fused path, which this one has not.
        self._qkv_same_embed_dim, self.in_proj_bias = False, None
        self.train(packed.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`: outputs, and the attention weights if they are needed."""
        alone = query.dim() == 2
        if alone:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = (self._split(layer(t)) for layer, t in ((self.q, query), (self.k, key), (self.v, value)))
        mask = self._mask(key_padding_mask, attn_mask, q)
        rate = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            mixed = F.dropout(weights, rate) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, rate, scale=self.head_dim**-0.5)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if alone:
            return out[0], None if weights is None else weights[0]
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def _mask(self, padding: Tensor | None, attn_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one of numbers to add, broadcastable to [B, heads, L, S]."""
        found = None
        if attn_mask is not None:
            found = _additive(attn_mask, q)
            if found.dim() == 3:
                found = found.view(q.shape[0], -1, *found.shape[1:])
        if padding is not None:
            own = _additive(padding, q)[:, None, None]
            found = own if found is None else found + own
        return found


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, float("-inf"))


def _linear(weight: Tensor, weight_learned: bool, bias: Tensor | None, bias_learned: bool) -> nn.Linear:
    """A layer with copies of the tensors; what is frozen stays frozen, weight and bias each for itself."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).to(weight)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias).requires_grad_(bias_learned)
        layer.weight.requires_grad_(weight_learned)
    return layer


@entry()
def separate_attention_(model: nn.Module) -> nn.Module:
    """Replace every `nn.MultiheadAttention` inside a model by a `SeparateAttention` of the same outputs.

    Parameter names change (`in_proj_weight` becomes `q.weight`, `k.weight`, `v.weight`): do it before tracing, and in
    the factory that later loads the weights.

    Returns:
        The model, changed in place (or the replacement, if it is itself one).

    Raises:
        ConfigError: one of them has extra keys and values; the model is as it was.

    Example:
        >>> layer = prunus.separate_attention_(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True))
        >>> graph = prunus.trace(layer, torch.randn(2, 5, 16))
        >>> [(group.name, group.units) for group in graph.groups()]
        [('self_attn.q', 16), ('self_attn.q.heads', 4), ('self_attn.v', 16), ('linear1', 32)]
    """
    if isinstance(model, nn.MultiheadAttention):
        return SeparateAttention(model)
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
    return replace_submodules_(model, {n: SeparateAttention(m, n) for n, m in found.items()})
