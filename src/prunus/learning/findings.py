"""What came out of the learning, by the kind of the method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from prunus.files.stagefile import Stage
from prunus.masks.activations import QuantizedInput
from prunus.masks.patterns import Layout
from prunus.posteriors.base import Posterior
from prunus.runtime.oldnames import OldNames


class Findings(OldNames):
    """What a method found out: `Scores` of units, or `LearnedMasks` inside weights."""

    method: str

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.line()}>"

    def line(self) -> str:
        """What was found about what, in one line."""
        raise NotImplementedError


@dataclass(frozen=True)
class Depth:
    """A network without some of its blocks, and its loss; nothing else of it is smaller."""

    blocks: tuple[str, ...]
    loss: float


@dataclass(frozen=True, repr=False)
class Scores(Findings):
    """What a method found about units.

    Attributes:
        values: group name -> score of each unit, fp32 [K], higher = keep.
        posteriors: group name -> learned posterior (empty for criteria).
        method: name of the method.
        history: mean loss of every epoch of the learning.
        cost_exponent: of the method, see `Method.cost_exponent`.
        measured: for an allocation of the scope `measured`: group name -> loss that each unit saves, float64 [K].
        stages: what each stage found, for methods that work in stages.
        replicas: group name -> scores that a learning anew, from other data of the same size and another seed, might
            have given, fp32 [2 R, K], in pairs that lie on both sides of `values`, as far from them as one learning
            lies from the mean of many; empty where nothing was learned.
        depths: the network with ever fewer blocks, the whole one first; empty where no block may go.
    """

    values: Mapping[str, Tensor]
    posteriors: Mapping[str, Posterior] = field(default_factory=dict)
    method: str = ""
    history: tuple[float, ...] = ()
    cost_exponent: float = 0.0
    measured: Mapping[str, Tensor] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    replicas: Mapping[str, Tensor] = field(default_factory=dict)
    depths: tuple[Depth, ...] = ()

    def line(self) -> str:
        """By which method, of how many groups."""
        learned = f", {len(self.posteriors)} posteriors" if self.posteriors else ""
        return f"{self.method}, {sum(map(len, self.values.values()))} units in {len(self.values)} groups{learned}"


@dataclass(frozen=True)
class MaskEpoch(OldNames):
    """What the masks looked like after an epoch; per layer.

    Attributes:
        loss: mean over the epoch's batches, masks drawn; NaN before the first epoch.
        confidence: see `masks.metrics.confidence`, at the noise of that moment.
        diversity: generalised Jensen-Shannon divergence of the rows, nats.
        flips: expected share of the kept that the next draw replaces.
        entropy: mean over the rows of the entropy of softmax(logits / c), nats.
        keep_probability: mean probability of the most probable mask's elements to be drawn.
    """

    renamed: ClassVar[Mapping[str, str]] = {"inclusion": "keep_probability"}

    loss: float
    confidence: Mapping[str, float]
    diversity: Mapping[str, float]
    flips: Mapping[str, float]
    entropy: Mapping[str, float]
    keep_probability: Mapping[str, float]


@dataclass(frozen=True, repr=False)
class LearnedMasks(Findings):
    """What a method found about weights.

    Attributes:
        masks: bool [R, n] by layer, k True in every row.
        layouts: how each mask lies on its layer's weight.
        logits: what was learned, fp32 [R, n] by layer.
        keep_probability: probability of every element to be drawn at the last noise (inclusion probability), by layer
            fp32 [R, n], rows sum to k; estimated from 50 draws, so to 0.07 at worst (one standard error). Empty if
            nothing was drawn.
        inputs: the grids that the layers' inputs lie on, by layer; empty without `activation_bits`. They are not in
            the model: `quantized_inputs` puts them around it, the int8 ONNX export writes them down.
        history: one entry per epoch of drawing; entry 0 is before the first. Empty if nothing was drawn.
        sampled_loss: mean loss with masks drawn at the last noise, before they were fixed.
        fixed_loss: mean loss with the fixed masks, before any tuning.
        refitted: whether the weights are the dense network's, refitted under the masks, and not those that trained
            along with them: whichever lost less.
        method: name of the method.
    """

    renamed: ClassVar[Mapping[str, str]] = {"inclusion": "keep_probability"}

    masks: Mapping[str, Tensor]
    layouts: Mapping[str, Layout]
    logits: Mapping[str, Tensor]
    keep_probability: Mapping[str, Tensor]
    inputs: Mapping[str, QuantizedInput]
    history: tuple[MaskEpoch, ...]
    sampled_loss: float
    fixed_loss: float
    refitted: bool = False
    method: str = ""

    def line(self) -> str:
        """By which method, in which layers."""
        return f"{self.method}, masks in {len(self.masks)} layers"
