"""What a method is given, in one piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from prunus.data.batches import Loader, as_batches
from prunus.data.losses import own_loss
from prunus.errors import ConfigError
from prunus.files.stagefile import Checkpoint
from prunus.graph.grouping import Graph
from prunus.layers.submodules import Ignored
from prunus.plan.request import Allow, Request


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
    """

    model: nn.Module
    example_inputs: Any = field(repr=False)
    graph: Graph = field(repr=False)
    request: Request
    data: Iterable[Any] | None = field(default=None, repr=False)
    loss_fn: Callable[..., Tensor] | None = None
    ignored_layers: Sequence[Ignored] = ()
    allow: frozenset[Allow] = frozenset()
    seed: int = 0
    progress: bool = False
    checkpoint: Checkpoint | None = None

    def learned_from(self) -> tuple[Loader | None, Callable[..., Tensor] | None]:
        """Batches in one form and their loss: the model's own one if none was given and the batches are labelled dicts.

        Raises:
            ConfigError: a loss that can't be called.
            DataError: data that can't be looped over twice.
        """
        if self.loss_fn is not None and not callable(self.loss_fn):
            what = f"a {type(self.loss_fn).__name__} can't be called"
            raise ConfigError("loss_fn", what, "give loss_fn(outputs, targets)")
        if self.data is None:
            return None, self.loss_fn
        batches = as_batches(self.data, self.model, self.example_inputs, own_loss=self.loss_fn is None)
        return batches, own_loss if self.loss_fn is None and batches.labelled() else self.loss_fn


def needed(
    method: str, data: Loader | None, loss_fn: Callable[..., Tensor] | None
) -> tuple[Loader, Callable[..., Tensor]]:
    """The data and the loss that a method needs, after a look at the first batch.

    Raises:
        ConfigError: either is missing.
        DataError: there is no batch, or one of no known form.
    """
    if data is None or loss_fn is None:
        raise ConfigError(
            f"method {method!r}",
            "the scores are made from data, and data or loss_fn is missing",
            "pass data (batches of inputs and targets) and loss_fn, or use a weight criterion such as 'l1' and a scope "
            "that measures nothing",
        )
    data.first()
    data.warn_of_shared_data()
    return data, loss_fn
