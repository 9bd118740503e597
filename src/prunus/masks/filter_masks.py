"""Masks of whole filters: they act where the filters are read, not on the weight that makes them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunus.masks.layers import MaskedWeight
from prunus.masks.patterns import Layout
from prunus.masks.sampling import gumbel, sample


class MaskedUnits(MaskedWeight):
    """The mask of a layer's filters, as multipliers for gates at their readers; the weight only goes onto its grid.

    On the weight a filter's mask would stand before the batch norm. That undoes any scale, so what is drawn would get
    no gradient; what is not drawn is divided by sqrt(eps) and gets an enormous one, leaves its bias behind, and has
    running statistics of nothing.

    Attributes:
        curvature: with a mask for each example, make a filter's gradient that of the whole step from out to in.
    """

    def __init__(self, layout: Layout, logits: Tensor, *, curvature: bool = True, **settings: Any) -> None:
        super().__init__(layout, logits, **settings)
        self.curvature = curvature

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid."""
        return self.on_grid(weight)

    def multipliers(self, examples: int = 1) -> Tensor:
        """This pass's zeros and ones, fp32; their gradient reaches the logits unless the mask is fixed.

        Args:
            examples: how many masks to draw, if any are drawn.

        Returns:
            [examples, n], or [1, n] where nothing is drawn.
        """
        if torch.compiler.is_compiling():
            from prunus.masks.eager import eagerly

            return eagerly(self.multipliers, examples)
        if self.mode == "fixed":
            return self.fixed.float()
        noise: Tensor | None = None
        logits: Tensor = self.logits
        if self.mode == "sample" and self.training:
            draw, again = divmod(self.uses, self.resample_every)
            self.uses += 1
            if again and self._mask is not None and len(self._mask) == examples:
                return self._mask
            noise = gumbel(examples, self.layout.n, (self.seed, draw), self.logits.device)
            logits = logits.expand(examples, -1)
        found = sample(
            logits, self.layout.k, noise,
            temperature=self.temperature, noise_scale=self.noise_scale, order=self.order,
        )  # fmt: skip
        self._mask = found.detach() if noise is not None else None
        if self.curvature and examples > 1 and noise is not None and found.requires_grad:
            found.register_hook(partial(_with_curvature, found.detach()))
        return found


def _with_curvature(mask: Tensor, gradient: Tensor) -> Tensor:
    """The change of the loss from a unit out to the unit in, by the second-order expansion at where it is.

    The derivative alone is nearly zero where the unit is in, since weights adapt to it, and where it is out it promises
    twice what joining brings: units swap places for ever. Half of the second derivative mends both ends; it is
    estimated by the square of an example's derivative, as in Fisher pruning.

    Args:
        mask: zeros and ones, [B, n].
        gradient: of the examples' mean loss by the mask, [B, n].
    """
    return gradient + (0.5 - mask) * len(mask) * gradient.square()
