"""Dynamic probabilistic pruning: exactly k of n, drawn without replacement, weights and logits learned together.

Idea
    Every set of n elements (the inputs of a neuron, the kernels of a filter, ...) has a vector of logits. Each step
    draws k of them by Gumbel top-k and masks the weight with them; the gradient of a relaxation reaches all logits.
    Gonzalez-Carabarin, Huijben, Veeling, Schmid and van Sloun, "Dynamic Probabilistic Pruning: A General Framework for
    Hardware-Constrained Pruning at Different Granularities", IEEE TNNLS 2022 (arXiv 2105.12686).

Objective (minimised)
    E_masks[ loss(net(x; M * W), y) ] + entropy_weight * sum over rows of H(softmax(logits))

Schedule
    Temperature falls linearly from 5 to 0.5, noise from 0.3 to 0.03, step by step; the last epoch of drawing stays at
    the end values. Then the most probable masks (or the best of some draws, on data that are not the training data) are
    fixed and the survivors trained on. Filters are masked where they are read, behind norm and activation, and taken
    out for good once they are fixed.

Settings that matter
    The learning rate of the logits (`logit_lr_mult`) and the noise, far more than the entropy's weight; `prior`, the
    strength with which |W| of a trained network orders the logits at the start: without it training starts from masks
    that have nothing to do with the network.

Departures from the authors' released code
    Per-filter constraint in convolutions (a reshape there scrambles it), the schedule, gradient in draw order
    (`order="index"` gives theirs), masks without noise at inference, int8 with 255 levels (`scheme="released"`).
    Filters are drawn for every example and learn from the loss's change from out to in, to second order, where
    straight-through takes the derivative at one end (`draws="batch"`, `curvature=False`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from prunus.gates.gate import Draws
from prunus.masks.filter_masks import MaskedUnits
from prunus.masks.layers import MaskedWeight, layer_of
from prunus.masks.patterns import Pattern
from prunus.masks.quantize import Bits, Scheme
from prunus.masks.sampling import Order
from prunus.methods.base import MaskMethod
from prunus.runtime.ranges import Count, Natural, NonNegative, Positive
from prunus.runtime.seeds import seed_of


@dataclass(frozen=True)
class DynamicProbabilisticPruning(MaskMethod, name="dpp"):
    """Configuration; see the module's text for what matters.

    Attributes:
        pattern: what is kept, as text (`weight 10%`, `kernel 8/64`, `2:4`, ...).
        epochs: passes over the data while masks are drawn; 0 takes the masks of the logits at the start (magnitude with
            a prior, random without).
        tune_epochs: passes afterwards, with the masks fixed; 0 leaves the weights to repair.
        lr: Adam's step for the weights; falls along a cosine over all epochs.
        logit_lr_mult: times `lr` is the step for the logits.
        train_weights: learn the weights as well; False learns the masks of a frozen network.
        temperature: of the relaxation, at the first step and in the last epoch of the drawing.
        noise_scale: of the Gumbel noise, at the first step and in the last epoch of the drawing; (1.0, 0.1) from
            scratch, where there is no order to begin with.
        entropy_weight: factor of the summed row entropies.
        init_std: standard deviation of the logits at the start.
        prior: how much standardised magnitudes count in the logits at the start; 0 for training from scratch.
        rescale: multiply the weights by sqrt(n / k) first; for training from scratch.
        order: of the relaxation, see `masks.sampling.sample`.
        resample_every: steps that share one drawn mask; the logits learn from the first of them. 1 is the method.
        draws: filters alone: a mask for every example of a batch, or one for all, which is the paper's.
        curvature: filters with a mask for every example: see `filter_masks`; False is the paper's straight-through.
        best_of: masks to draw and compare at the end; 1 takes the most probable.
        bits: of the weights while training and after; None leaves them.
        per_channel: one grid per output channel.
        activation_bits: of the masked layers' inputs while training and after; None leaves them.
        scheme: of the quantisation, see `masks.quantize.quantized`.
    """

    pattern: str = "weight 10%"
    epochs: Natural = 10
    tune_epochs: Natural = 3
    lr: Positive = 1e-3
    logit_lr_mult: Positive = 10.0
    train_weights: bool = True
    temperature: tuple[Positive, Positive] = (5.0, 0.5)
    noise_scale: tuple[NonNegative, NonNegative] = (0.3, 0.03)
    entropy_weight: NonNegative = 0.0
    init_std: NonNegative = 0.01
    prior: float = 1.0
    rescale: bool = False
    order: Order = "draw"
    resample_every: Count = 1
    draws: Draws = "example"
    curvature: bool = True
    best_of: Count = 1
    bits: Bits | None = None
    per_channel: bool = True
    scheme: Scheme = "symmetric"
    activation_bits: Literal[8] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        Pattern.parse(self.pattern)

    def schedule(self, epoch: float) -> tuple[float, float]:
        """Temperature and noise scale: linear until the last epoch of drawing begins, or half of the only one is over.

        `epoch` counts from 0 and may be a fraction.
        """
        share = min(1.0, epoch / max(self.epochs - 1, 0.5))
        (hot, cold), (loud, quiet) = self.temperature, self.noise_scale
        return hot + share * (cold - hot), loud + share * (quiet - loud)

    def masks(self, model: nn.Module, names: Sequence[str], seed: int = 0) -> Mapping[str, MaskedWeight]:
        """A mask for every named layer; with a filter pattern `MaskedUnits`, which want gates.

        Raises:
            ConfigError: a layer on which the pattern does not fit; see `Pattern.layout`.
        """
        pattern = Pattern.parse(self.pattern)
        layouts = {name: pattern.layout(layer_of(model, name), name) for name in names}
        by_filter = pattern.granularity == "filter"
        kind = partial(MaskedUnits, curvature=self.curvature) if by_filter else MaskedWeight
        found = {}
        for name, layout in layouts.items():
            own = seed_of(seed, name)
            noise = torch.randn(
                layout.rows, layout.n, generator=torch.Generator().manual_seed(own), dtype=torch.float32, device="cpu"
            )
            weight = layer_of(model, name).weight.detach().float().cpu()
            size = layout.rows_of(layout.form.rows(weight).square()).sqrt()
            spread = size.std(1, keepdim=True).clamp_min(1e-12) if layout.n > 1 else torch.ones_like(size)
            logits = self.init_std * noise + self.prior * (size - size.mean(1, keepdim=True)) / spread
            found[name] = kind(
                layout, logits, seed=own, order=self.order, resample_every=self.resample_every,
                bits=self.bits, per_channel=self.per_channel, scheme=self.scheme,
            )  # fmt: skip
        return found
