"""The contract between a method and the rest: what it needs to see, and what it answers.

A method is a frozen dataclass that is its own configuration. Three kinds are of units, by what they look at:
weights alone (`WeightCriterion`), gradients of the loss with respect to gates held at one (`GradientCriterion`), and
posteriors over the gates that are learned (`PosteriorMethod`); a fourth is of experts alone (`RoutingCriterion`).
Whatever the kind, the answer is one score per unit, higher = keep, comparable between the groups of one model. A
`StagedMethod` is a posterior method that, besides, decides by itself what goes, and may let the weights train along,
one stage after the other. A `MaskMethod` is of weights: its answer is which k of n elements stay, in every row of every
weight.
"""

from __future__ import annotations

import math
import re
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.gates.gate import Draws
from prunus.graph.groups import ChannelGroup
from prunus.masks.layers import MaskedWeight
from prunus.masks.quantize import Bits
from prunus.plan.request import ALLOW, Allow, Kind
from prunus.posteriors.base import DecidingPosterior, Posterior
from prunus.runtime.fields import check_fields
from prunus.runtime.oldnames import OldNames, OldSettings, adopt_old_definitions_
from prunus.runtime.ranges import Count, Fraction, Natural, NonNegative, Positive

METHODS: dict[str, type[Method]] = {}
"""Name -> class, filled by the classes themselves: see `Method`."""


def register(kind: type[Method], name: str) -> None:
    """Make a method known by a name; a class that is defined anew (a file read again) takes the place of its old self.

    Raises:
        ConfigError: a name that can't be typed on a command line, that another class has, or for an abstract class.
    """
    where = f"class {_place(kind)}"
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        raise ConfigError(where, f"{name!r} is no name for a method", "use letters, digits, '_' and '-': name='vdrop'")
    missing = [n for n in dir(kind) if getattr(getattr(kind, n, None), "__isabstractmethod__", False)]
    if missing:
        what = f"it has a name, but does not define {', '.join(missing)}"
        raise ConfigError(where, what, "define what is missing, or leave the name out")
    other = METHODS.get(name)
    if other is not None and _definition(other) != _definition(kind):
        what = f"the name {name!r} belongs to {_place(other)}"
        raise ConfigError(where, what, 'give it another: class ...(..., name="...")')
    METHODS[name] = kind


def _place(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _definition(kind: type) -> tuple[str, str]:
    """What a class and its old self have in common: the file, under whatever module name, and the name in it."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return (str(Path(file).resolve()) if file else kind.__module__), kind.__qualname__


class _Named(OldSettings):
    """Classes whose definition has a word `name`, which Python 3.10's `ABCMeta` takes for a parameter of its own."""

    def __new__(mcls, kind: str, bases: tuple[type, ...], body: dict[str, Any], /, **words: Any) -> Any:
        if "name" in words:
            words["named"] = words.pop("name")
        return super().__new__(mcls, kind, bases, body, **words)


@dataclass(frozen=True)
class Method(OldNames, metaclass=_Named):
    """Anything that can say what stays.

    A method makes itself known by the name in its definition: `class VariationalDropout(StagedMethod, name="vdrop")`.
    Without one it works as an object, and has no name that `prune` or the command line could find.

    Attributes:
        name: what it is called on the command line and in plans.
        cost_exponent: how the scores are compared between groups if the caller does not say: 0 ranks units by score,
            1 by score per cost saved, which suits scores that estimate a loss.
        targets: kinds of targets it can be given.
        allows: what of `allow` it has a use for.
        decides: it has a rule of its own for how much stays, and needs no target.
        in_stages: it writes checkpoints and can go on from them.
        needs_data: it looks at data and a loss.
        renamed: old name of a setting or method of its -> the one that took its place; the old ones go on working.
    """

    name: ClassVar[str]
    cost_exponent: ClassVar[float] = 0.0
    targets: ClassVar[tuple[Kind, ...]] = ("budget", "promise", "ratio", "counts")
    allows: ClassVar[tuple[Allow, ...]] = ALLOW
    decides: ClassVar[bool] = False
    in_stages: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True

    def __init_subclass__(cls, *, named: str | None = None, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        adopt_old_definitions_(cls)
        if named is not None:
            cls.name = named
            register(cls, named)
            return
        # dataclass(slots=True) makes the class a second time, without the words of its definition.
        old = METHODS.get(cls.__dict__.get("name", ""))
        if old is not None and (old.__module__, old.__name__) == (cls.__module__, cls.__name__):
            METHODS[old.name] = cls

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class WeightCriterion(Method):
    """Scores from the parameters alone: no data, no loss."""

    needs_data: ClassVar[bool] = False

    @abstractmethod
    def score(self, model: nn.Module, group: ChannelGroup, seed: int) -> Tensor:
        """Score of each unit.

        Args:
            model: the dense network; read only.
            group: the group to score; its slots name the tensors.
            seed: for criteria that draw random numbers.

        Returns:
            fp32 tensor [K], higher = keep.
        """


@dataclass(frozen=True)
class GradientCriterion(Method):
    """Scores from per-example gradients with respect to gates held at one."""

    cost_exponent: ClassVar[float] = 1.0

    @abstractmethod
    def contribution(self, gradient: Tensor) -> Tensor:
        """What one batch adds to the running sum.

        Args:
            gradient: fp32 [B, K]; row n holds d loss_n / d gate at gate = 1, which is
                the sum over positions of activation x gradient (loss_n = the loss of example n alone).

        Returns:
            fp32 [K], to be summed over all batches.
        """

    @abstractmethod
    def finish(self, total: Tensor, num_examples: int) -> Tensor:
        """Turn the fp64 sum of contributions over `num_examples` examples into each unit's score, [K]."""


@dataclass(frozen=True)
class RoutingCriterion(Method):
    """Scores of experts alone, from how tokens are routed to them and what they make of these; no loss, no gradient."""

    targets: ClassVar[tuple[Kind, ...]] = ("budget", "counts")
    allows: ClassVar[tuple[Allow, ...]] = ("experts", "own_class", "follow_branches")

    @abstractmethod
    def contribution(self, weights: Tensor, norms: Tensor) -> Tensor:
        """What each routed token adds to the running sum of the expert that it came to.

        Args:
            weights: fp32 [N], with which the expert's output counts.
            norms: fp32 [N], Euclidean norm of that output, without the weight.

        Returns:
            fp32 [N].
        """

    @abstractmethod
    def finish(self, total: Tensor, routed: Tensor, tokens: int) -> Tensor:
        """Turn the sums into each expert's score, [K].

        Args:
            total: fp64 [K], sums of contributions.
            routed: fp64 [K], tokens that came to each expert.
            tokens: all tokens.
        """


def ramp(progress: float, over: float) -> float:
    """From 0 to 1 within the first fraction `over` of the learning; 1 at once where that is 0."""
    return 1.0 if over == 0 else min(1.0, progress / over)


@dataclass(frozen=True)
class PosteriorMethod(Method):
    """Learns q(z) over one multiplier per unit while the weights stay frozen.

    Attributes:
        finds_spread: learn along how far a learning anew would end from this one (`learning.spread`), for which the
            parameters are displaced by a standard error meanwhile; for posteriors whose objective is smooth over that.
    """

    cost_exponent: ClassVar[float] = 1.0
    finds_spread: ClassVar[bool] = False
    renamed: ClassVar[Mapping[str, str]] = {"complexity_weight": "beta_at"}

    estimator: Literal["mc", "point"]
    epochs: Count
    min_steps: Natural
    samples: Count
    lr: Positive
    joint: bool
    draws: Literal["example", "batch"]
    placement: Literal["reader", "writer"]
    bn_mode: Literal["eval", "train"]
    loss_reduction: Literal["mean_loss", "loss_of_mean"]

    @abstractmethod
    def posterior(self, units: int) -> Posterior:
        """A fresh posterior for a group of `units` units."""

    def passes(self, batches: int) -> int:
        """Passes over data of so many batches: `epochs`, or as many as `min_steps` steps take."""
        return max(self.epochs, math.ceil(self.min_steps / batches))

    @abstractmethod
    def beta_at(self, progress: float, num_data: int) -> float:
        """Factor of KL / N at `progress` in [0, 1] of the learning on N = num_data examples: strength times warm-up."""

    def unit_weight(self, positions: int) -> float:
        """Factor of the complexity of units that are gated at so many positions of an example; 1 by default."""
        return 1.0

    def anneal_(self, posterior: Posterior, progress: float) -> None:
        """Change what a posterior does at `progress` in [0, 1] of the learning; nothing by default."""


ComplexityPer = Literal["information", "unit", "position", "root"]
BoundPer = Literal["unit", "position", "root"]


@dataclass(frozen=True)
class StagedMethod(PosteriorMethod):
    """A posterior method with a rule of its own for what stays, learned while the weights train along, in stages.

    Attributes:
        beta: factor of the complexity, as in beta-VAEs: more keeps less.
        complexity_per: what it is a factor of. `information`: where the method says how much goes, the strength
            follows from the loss, with beta 1 a quarter of what the units are worth (see `learning.strength`); with a
            target, as `bound_per`. The others are the evidence lower bound at beta 1: a unit's complexity counts once
            (`unit`), or once for every position of an example at which it is gated (`position`): then early units of a
            convolutional network are dearer than late ones. `root` lies between, the square root of that number.
        warmup: fraction of a stage over which the complexity's weight rises from 0.
        epochs: passes over the data in every stage while the noise is learned.
        min_steps: steps of a stage that are taken at least, in more passes if need be.
        tune_epochs: passes over the data after every stage, without noise.
        lr: Adam's step for the posterior's parameters.
        weight_lr: Adam's step for the weights.
        train_weights: `later` trains the layers from the stage's first writer on, `all` every layer, `none` none.
        simultaneous: one stage for all groups, instead of one after the other in data-flow order.
        floor: smallest fraction of a group that stays, whatever the noise says (at least one unit).
    """

    targets: ClassVar[tuple[Kind, ...]] = ("budget", "ratio", "counts")
    allows: ClassVar[tuple[Allow, ...]] = tuple(a for a in ALLOW if a not in ("blocks", "experts"))
    decides: ClassVar[bool] = True
    in_stages: ClassVar[bool] = True
    renamed: ClassVar[Mapping[str, str]] = {**PosteriorMethod.renamed, "kappa": "beta"}
    bound_per: ClassVar[BoundPer] = "unit"

    beta: NonNegative = 1.0
    complexity_per: ComplexityPer = "information"
    warmup: Fraction = 0.2
    epochs: Count = 5
    min_steps: Natural = 0
    tune_epochs: Natural = 1
    lr: Positive = 0.01
    weight_lr: Positive = 5e-4
    train_weights: Literal["later", "all", "none"] = "later"
    simultaneous: bool = False
    floor: Fraction = 0.02
    samples: Count = 1
    estimator: Literal["mc", "point"] = "mc"
    draws: Literal["example", "batch"] = "example"
    joint: bool = True
    placement: Literal["reader", "writer"] = "reader"
    bn_mode: Literal["eval", "train"] = "eval"
    loss_reduction: Literal["mean_loss", "loss_of_mean"] = "mean_loss"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bn_mode == "train" and self.train_weights != "none":
            what = "bn_mode='train' is for frozen weights; where they train along batch norm does anyway"
            raise ConfigError(f"{type(self).__name__}.bn_mode", what, "leave it out, or set train_weights='none'")

    @abstractmethod
    def posterior(self, units: int) -> DecidingPosterior:
        """A fresh posterior for a group of `units` units, with a rule of its own."""

    def beta_at(self, progress: float, num_data: int) -> float:
        """beta times the linear warm-up at `progress` in [0, 1]."""
        return self.beta * ramp(progress, self.warmup)

    def unit_weight(self, positions: int) -> float:
        """1, as many as the positions, or the root of their number, as `complexity_per` or `bound_per` say."""
        per = self.bound_per if self.complexity_per == "information" else self.complexity_per
        return float(positions ** {"unit": 0.0, "position": 1.0, "root": 0.5}[per])

    @property
    def follows_information(self) -> bool:
        """Whether the strength follows from what the units are worth, where nobody says how much goes."""
        return self.complexity_per == "information" and type(self).unit_weight is StagedMethod.unit_weight


class MaskMethod(Method):
    """Learns masks inside weights, together with the weights: exactly k of n stay in every row.

    A subclass is a frozen dataclass, in which these are fields, in whatever order.

    Attributes:
        pattern: what stays, as text (`weight 10%`, `kernel 8/64`, `2:4`, ...), where the target does not say it.
        epochs: passes over the data while masks are drawn.
        tune_epochs: passes afterwards, with the masks fixed.
        lr: Adam's step for the weights.
        logit_lr_mult: times `lr` is the step for the logits.
        train_weights: learn the weights as well; False learns the masks of a frozen network.
        entropy_weight: factor of the summed row entropies in the objective.
        rescale: multiply the weights by sqrt(n / k) first; for training from scratch.
        draws: filters alone: a mask for every example of a batch, or one for all.
        best_of: masks to draw and compare at the end; 1 takes the most probable.
        bits: of the weights while training and after; None leaves them.
        activation_bits: of the masked layers' inputs while training and after; None leaves them.
    """

    targets: ClassVar[tuple[Kind, ...]] = ("pattern",)
    allows: ClassVar[tuple[Allow, ...]] = ("follow_branches",)
    decides: ClassVar[bool] = True

    pattern: str
    epochs: Natural
    tune_epochs: Natural
    lr: Positive
    logit_lr_mult: Positive
    train_weights: bool
    entropy_weight: NonNegative
    rescale: bool
    draws: Draws
    best_of: Count
    bits: Bits | None
    activation_bits: Literal[8] | None

    @abstractmethod
    def schedule(self, epoch: float) -> tuple[float, float]:
        """Temperature of the relaxation and scale of the noise; `epoch` counts from 0 and may be a fraction."""

    @abstractmethod
    def masks(self, model: nn.Module, names: Sequence[str], seed: int = 0) -> Mapping[str, MaskedWeight]:
        """A mask for every named layer, by `pattern`; with a filter pattern `MaskedUnits`, which want gates.

        Raises:
            ConfigError: a layer on which the pattern does not fit; see `Pattern.layout`.
        """

    @property
    def passes(self) -> int:
        """Passes over the data: with frozen weights there is nothing to tune."""
        return self.epochs + (self.tune_epochs if self.train_weights else 0)
