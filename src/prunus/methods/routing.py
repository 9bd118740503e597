"""Which experts of a layer matter, from one pass of tokens through the dense network.

`reap` is the router-weighted norm of what an expert makes, a mean over the tokens that are routed to it: Lasby et al.,
"REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression", 2025 (arXiv 2510.13999). `frequency` is the
share of tokens that are routed to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from prunus.methods.base import RoutingCriterion


@dataclass(frozen=True)
class RouterWeightedNorm(RoutingCriterion, name="reap"):
    """Mean of routing weight times norm of the expert's output, over the tokens that came to it."""

    def contribution(self, weights: Tensor, norms: Tensor) -> Tensor:
        """The product: [N]."""
        return weights * norms

    def finish(self, total: Tensor, routed: Tensor, tokens: int) -> Tensor:
        """Mean over the expert's own tokens, 0 without any: fp32 [K]."""
        return (total / routed.clamp_min(1)).float()


@dataclass(frozen=True)
class RoutingFrequency(RoutingCriterion, name="frequency"):
    """Share of the tokens that came to the expert."""

    def contribution(self, weights: Tensor, norms: Tensor) -> Tensor:
        """One for each: [N]."""
        return weights * 0 + 1

    def finish(self, total: Tensor, routed: Tensor, tokens: int) -> Tensor:
        """Share of all tokens: fp32 [K]."""
        return (total / max(tokens, 1)).float()
