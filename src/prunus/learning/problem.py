"""What a method is given, in one piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from prunus.data.batches import Loader, Splits, as_batches
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.losses import own_loss
from prunus.data.taught import taught
from prunus.errors import ConfigError
from prunus.files.stagefile import Checkpoint
from prunus.files.steps import Steps
from prunus.graph.grouping import Graph
from prunus.layers.submodules import Ignored
from prunus.learning.findings import Scores
from prunus.measure.gauged import Measured
from prunus.methods.base import GradientCriterion, Method
from prunus.plan.request import Allow, Request
from prunus.refit.config import RepairConfig
from prunus.refit.prepared import Prepared
from prunus.runtime.precision import Precision


@dataclass(frozen=True)
class Problem:
    """What is asked of a method, about which network, with which data.

    Attributes:
        model: the trained network; nobody changes it.
        example_inputs: as for `trace`.
        graph: its analysis.
        request: how much goes.
        data: batches as the caller has them; see `learned_from`.
        loss_fn: the loss as the caller gave it; see `learned_from`.
        ignored_layers: modules, module types or name globs that stay as they are.
        allow: what is opened, or shut; see `prune`.
        seed: of everything random.
        progress: show bars where there is a terminal.
        checkpoint: where stages are written down, for methods that have some.
        repair: how what stays takes over; None: it doesn't.
        prepared: what repair needs, if it was made before.
        precision: of forward and backward passes; `auto` is fp32 wherever something is decided.
        scores: what the method found before, so that it need not look again.
        measured: what the budget bounds and is measured, not counted.
    """

    model: nn.Module
    example_inputs: Any = field(repr=False)
    graph: Graph = field(repr=False)
    request: Request
    data: Iterable[Any] | Splits | None = field(default=None, repr=False)
    loss_fn: Callable[..., Tensor] | None = None
    ignored_layers: Sequence[Ignored] = ()
    allow: frozenset[Allow] = frozenset()
    seed: int = 0
    progress: bool = False
    checkpoint: Checkpoint | None = None
    repair: RepairConfig | None = None
    prepared: Prepared | None = field(default=None, repr=False)
    precision: Precision = "auto"
    scores: Scores | None = field(default=None, repr=False)
    measured: tuple[Measured, ...] = field(default=(), repr=False)

    @property
    def steps(self) -> Steps | None:
        """Where what is finished is kept; None: nowhere."""
        return None if self.checkpoint is None else self.checkpoint.steps

    def data_digest(self) -> str:
        """Digest of the data that are learned from, for `steps`."""
        loader = self.learned_from()[0]
        return "" if loader is None or self.steps is None else self.steps.digest_of(loader.data)

    def learned_from(self) -> tuple[Loader | None, Callable[..., Tensor] | None]:
        """Batches in one form and their loss.

        Without a loss it is the model's own one where the batches are labelled dicts, and the distance from the dense
        network's outputs where they have no targets.

        Raises:
            ConfigError: a loss that can't be called.
            DataError: data that can't be looped over twice.
        """
        return self._learned_from

    @cached_property
    def _learned_from(self) -> tuple[Loader | None, Callable[..., Tensor] | None]:
        loss_fn = self.loss_fn
        if loss_fn is not None and not callable(loss_fn):
            what = f"a {type(loss_fn).__name__} can't be called"
            raise ConfigError("loss_fn", what, "give loss_fn(outputs, targets)")
        if self.data is None:
            return None, loss_fn
        data = self.data.train if isinstance(self.data, Splits) else self.data
        batches = as_batches(data, self.model, self.example_inputs, own_loss=loss_fn is None)
        if loss_fn is None and batches.labelled():
            return batches, own_loss
        if loss_fn is None:
            loss_fn = DenseOutputs() if batches.unlabelled() else None
        return (batches, None) if loss_fn is None else taught(self.model, batches, loss_fn, self.seed)

    def without_labels(self, method: Method) -> str | None:
        """What a plan says of learning from the dense network's outputs; None where there are labels."""
        loss_fn = self.learned_from()[1]
        if not isinstance(loss_fn, DenseOutputs):
            return None
        drawn = (
            "; gradients are drawn, with the true Fisher for their mean square"
            if isinstance(method, GradientCriterion)
            else ""
        )
        return f"learned without labels: {loss_fn.describe()}{drawn}"

    def learning(self, method: str) -> Learning:
        """Data and loss, of which there have to be some, after a look at the first batch.

        Raises:
            ConfigError: either is missing, or a loss that can't be called.
            DataError: there is no batch, or one of no known form.
        """
        loader, loss_fn = needed(method, *self.learned_from())
        others = as_batches(self.data.validation).data if isinstance(self.data, Splits) else None
        validation = None if others is None else loader.of(others)
        return Learning(
            loader, loss_fn, validation,
            seed=self.seed, precision=self.precision, progress=self.progress, steps=self.steps,
        )  # fmt: skip


@dataclass(frozen=True)
class Worth:
    """What the units that may go are worth to the loss; see `learning.strength`.

    Attributes:
        information: mean loss of the network without any of them, less the one with all; not negative.
        shares: claims on it of all groups together.
        lowest: running loss of the stages before.
    """

    information: float
    shares: float
    lowest: float = math.inf


@dataclass(frozen=True)
class Learning:
    """What is learned from, and how.

    Attributes:
        loader: batches of (inputs, targets).
        loss_fn: mean loss of a batch.
        validation: other batches, to compare on what was learned; None takes the same.
        num_data: number of labels N in the bound; None counts them when they are asked for.
        seed: of everything random.
        precision: of the forward and backward passes; `auto` is fp32 wherever something is decided.
        progress: show bars where there is a terminal.
        worth: what the strength of the complexity follows from; None takes the bound's, 1 / N.
        steps: where what is finished is kept; None: nowhere.
    """

    loader: Loader = field(repr=False)
    loss_fn: Callable[..., Tensor]
    validation: Loader | None = field(default=None, repr=False)
    num_data: int | None = None
    seed: int = 0
    precision: Precision = "auto"
    progress: bool = False
    worth: Worth | None = None
    steps: Steps | None = field(default=None, repr=False)

    @property
    def labels(self) -> int:
        """N: `num_data`, or what the loader has in one pass."""
        return self.loader.num_labels() if self.num_data is None else self.num_data

    def counted(self) -> Learning:
        """The same with N found out, so that no pass over the data has to be made for it later."""
        return replace(self, num_data=self.labels)


def needed(
    method: str, loader: Loader | None, loss_fn: Callable[..., Tensor] | None
) -> tuple[Loader, Callable[..., Tensor]]:
    """The data and the loss that a method needs, after a look at the first batch.

    Raises:
        ConfigError: either is missing.
        DataError: there is no batch, or one of no known form.
    """
    if loader is None or loss_fn is None:
        raise ConfigError(
            f"method {method!r}",
            "it learns from data, and data or loss_fn is missing",
            "pass data (batches of inputs and targets) and loss_fn (prunus.data.DenseOutputs() to learn from the dense "
            "network's own outputs, without looking at targets), or use a weight criterion such as 'l1' and a scope "
            "that measures nothing",
        )
    loader.first()
    loader.warn_of_shared_data()
    return loader, loss_fn
