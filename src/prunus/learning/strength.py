"""How strongly the complexity counts where nobody says how much goes: by what the units are worth to the loss.

The evidence lower bound weighs the complexity by 1 / N, so that with many examples it hardly counts: what it allows to
lose is far below what a recovery wins back, and its pull is lost in the noise of the gradient. Here the complexity of a
group, all units whole, weighs `SHARE` of the group's equal part of the information: of the loss that the network has
without any of the units above the one it has with all. It scales as the loss does, and knows no number of examples. It
weighs less for as long as the running loss is more than `LOSS` of the information, and two of its standard errors,
above the lowest so far: the Lagrange multiplier of a constraint, kept below a price (after Rezende and Viola, "Taming
VAEs", 2018, without their code), and above the bound, which counts for more where examples are few.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.gates.gate import GateSet
from prunus.graph.groups import ChannelGroup
from prunus.learning.measured import first_batches, masked_loss
from prunus.learning.problem import Learning, Worth
from prunus.methods.base import PosteriorMethod

SHARE = 0.25
"""Of a group's part of the information, what its complexity weighs."""
LOSS = 0.01
"""Of the information, what the running loss may rise before the complexity weighs less."""
WINDOW = 0.05
"""Of a stage's steps, those that the running loss is averaged over."""
SMOOTH = 20.0
"""Steps that it is averaged over at least, and that have to have been seen before it is compared."""
RANGE = 7.0
"""Factors of e that the weight wins back in a stage where the loss allows it; it falls three times as fast."""
REACH = 6.0
"""What a parameter of a posterior can travel in a stage, at least: a multiplier from 1 to 0 and back, a logarithm of a
standard deviation from -5 to 0."""

SEEN = ("lowest", "running", "variance", "seen", "log_factor")
"""What changes from step to step."""


def root(group: ChannelGroup) -> float:
    """A group's claim on the information: between one for every group and one for every unit."""
    return math.sqrt(group.units)


def worth_of(model: nn.Module, groups: Sequence[ChannelGroup], learning: Learning) -> Worth:
    """What the units of the groups are worth, on the first batches; the model is unchanged.

    Raises:
        DataError: NaN or infinity in the inputs or the loss.
    """
    few = first_batches(learning.loader, learning.seed)
    whole, none = (
        masked_loss(model, groups, kept, few, learning.loss_fn, precision=learning.precision)
        for kept in ({}, {g.name: () for g in groups})
    )
    return Worth(max(none - whole, 0.0), sum(map(root, groups)))


def prices(worth: Worth, groups: Sequence[ChannelGroup], method: PosteriorMethod) -> dict[str, float]:
    """Factor of each group's complexity in the loss of an example, by what the units are worth."""
    part = SHARE * worth.information / worth.shares
    fresh = {g.name: float(method.posterior(g.units).complexity().detach()) for g in groups}
    return {g.name: part * root(g) / fresh[g.name] if fresh[g.name] > 0 else 0.0 for g in groups}


@dataclass
class Strength:
    """The weight of the complexity during a stage.

    Attributes:
        prices: of each group's complexity, where the loss allows them.
        bound: the weight that the evidence lower bound gives them, and the least they have.
        tolerance: that the running loss may be above the lowest one; 0 or less: whatever it likes.
        steps: of the stage.
        lowest: running loss so far, in earlier stages too.
        warmup: fraction of the steps whose loss is none to compare with.
        running: average of the last losses, `variance` theirs.
        seen: steps so far.
        log_factor: of the prices, 0 or less.
    """

    prices: dict[str, float]
    bound: float
    tolerance: float
    steps: int
    lowest: float = math.inf
    warmup: float = 0.0
    running: float = 0.0
    variance: float = 0.0
    seen: int = 0
    log_factor: float = 0.0

    @classmethod
    def of(
        cls, worth: Worth, groups: Sequence[ChannelGroup], method: PosteriorMethod, num_data: int, steps: int
    ) -> Strength:
        """At the start of a stage of so many steps."""
        beta, warmup = method.beta_at(1.0, num_data), float(getattr(method, "warmup", 0.0))
        return cls(
            prices(worth, groups, method), 1 / num_data, LOSS * beta * worth.information, steps, worth.lowest, warmup
        )

    def state_dict(self) -> dict[str, Any]:
        """What the losses so far made of it."""
        return {name: getattr(self, name) for name in SEEN}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another one of the same stage stood."""
        for name in SEEN:
            setattr(self, name, state[name])

    def step_size(self, lr: float) -> float:
        """Adam's step: `lr`, or as long as it has to be to get anywhere in so few steps."""
        return max(lr, REACH / self.steps)

    def penalty(self, gates: GateSet, factor: float) -> Tensor:
        """What is minimised besides the loss, fp32 scalar; `factor` is beta times the ramp."""
        allowed = math.exp(self.log_factor)
        weights = {g.name: max(allowed * self.prices[g.name], self.bound) for g in gates.groups}
        return factor * torch.stack([w * gates.posterior(n).complexity() for n, w in weights.items()]).sum()

    def see(self, loss: float) -> None:
        """Take note of a step's loss, the same on all ranks."""
        self.seen += 1
        window = max(SMOOTH, WINDOW * self.steps)
        share = 1 / min(self.seen, window)
        change = loss - self.running
        self.running += share * change
        self.variance = (1 - share) * (self.variance + share * change**2)
        if self.tolerance <= 0 or self.seen <= max(window, self.warmup * self.steps):
            return
        self.lowest = min(self.lowest, self.running)
        allowed = self.tolerance + 2 * math.sqrt(self.variance * share / (2 - share))
        slack = 2 * (self.lowest + allowed - self.running) / allowed
        self.log_factor = min(0.0, self.log_factor + RANGE / self.steps * max(-3.0, min(1.0, slack)))


def after(worth: Worth | None, losses: Sequence[float]) -> Worth | None:
    """The same for a stage that follows others with these losses."""
    return worth if worth is None or not losses else replace(worth, lowest=min(losses))


def worth_told(worth: Worth) -> str:
    """What a plan says of it."""
    return (
        f"without all of the units the loss is {worth.information:.3g} higher: the strength of the complexity follows "
        "from it (beta is a multiple)"
    )
