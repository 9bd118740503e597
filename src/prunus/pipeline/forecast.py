"""A look ahead on a few examples: what a run would remove, what that costs, and about how long it takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import singledispatch
from typing import Any

from torch import nn

from prunus.data.batches import Splits, as_batches
from prunus.data.datasets import DataSource, batches_of
from prunus.data.evaluation import Evaluation, judged_by
from prunus.data.fitting import check_fits, learned_by
from prunus.data.given import source_of
from prunus.errors import ConfigError
from prunus.layers.submodules import Ignored
from prunus.methods.base import MaskMethod, Method, PosteriorMethod
from prunus.methods.criteria import Taylor
from prunus.methods.registry import resolve
from prunus.pipeline.duration import Duration, seconds_of_a_step, steps_of
from prunus.pipeline.prune import prune
from prunus.plan.allocation import Allocation
from prunus.plan.plan import Plan
from prunus.plan.request import Allow, Target, requested
from prunus.recovery.config import FinetuneConfig
from prunus.refit.config import RepairConfig
from prunus.runtime.entry import entry
from prunus.runtime.shown import Shown

EXAMPLES = 512
"""Looked at of the training part, and of the held-out one."""
BATCH = 64


@dataclass(frozen=True, repr=False)
class Forecast(Shown):
    """What was foreseen.

    Attributes:
        plan: what would stay.
        dense: the dense network, on the held-out examples that were looked at.
        cut: the pruned network on the same, repaired if it was to be, before any recovery.
        looked_by: the method that chose the units here.
        duration: of learning and recovery together; None where nobody knows how many batches there are.
    """

    plan: Plan
    dense: Evaluation
    cut: Evaluation
    looked_by: str
    duration: Duration | None

    def line(self) -> str:
        """What stays, and what it was measured to cost."""
        return f"{self.plan.line()}, {self.dense} -> {self.cut} before recovery"

    def explain(self) -> str:
        """The plan, the losses and the time."""
        lines = [self.plan.explain(), f"dense: {self.dense}; cut, before recovery: {self.cut}"]
        lines.append(f"measured on {self.cut.num_examples} held-out examples, units chosen by {self.looked_by}")
        untold = "how long it takes can't be told: nobody knows how many batches there are"
        lines.append(untold if self.duration is None else self.duration.line())
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plan = {"kept": {g.name: [len(g.kept), g.units] for g in self.plan.groups}, "asked": self.plan.asked}
        costs = {"before": vars(self.plan.before), "after": vars(self.plan.after), "notes": list(self.plan.notes)}
        judged = {"dense": asdict(self.dense), "cut": asdict(self.cut), "looked_by": self.looked_by}
        took = self.duration
        return {**plan, **costs, **judged, "steps": took and took.steps, "seconds": took and took.seconds}


@entry(unchanged=True)
def forecast(
    model: nn.Module,
    data: DataSource,
    *,
    method: Method | str = "dirichlet",
    target: Target | None = None,
    ignored_layers: Sequence[Ignored] = (),
    allow: Sequence[Allow] = (),
    allocation: Allocation | None = None,
    repair: bool | RepairConfig = True,
    recovery: FinetuneConfig | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    examples: int = EXAMPLES,
) -> Forecast:
    """What `compress` would do, from a few examples.

    A method that learns is replaced by one that only looks: of units by `taylor`, of masks by the largest weights. So
    which units go is a stand-in; how many, what they cost, and that the target can be met, is not.

    Args:
        model: as for `compress`, as are all but:
        data: as for `compress`.
        method: as for `compress`.
        target: as for `compress`; no promise, which only testing can keep.
        ignored_layers: as for `compress`.
        allow: as for `compress`.
        allocation: as for `compress`.
        repair: as for `compress`.
        recovery: as for `compress`.
        seed: as for `compress`.
        batch_size: of the learning.
        examples: looked at of each part.

    Raises:
        ConfigError: a promise, or a method that decides by itself how much goes, without a target.
        PruneError: what `prune` refuses.
    """
    chosen, data = resolve(method), source_of(data, model)
    asked = requested(target, allocation, method=chosen.name, takes=chosen.targets, optional=chosen.decides)
    if asked.promise is not None:
        what = "how much a promise lets go is found by testing alone"
        raise ConfigError(f"target {asked.promise.text!r}", what, "give a budget for a plan, such as 'macs<=50%'")
    look = stand_in(chosen)
    if target is None and not look.decides:
        what = f"how much goes is what {chosen.name!r} finds out while it learns"
        raise ConfigError("target", what, "give one for a plan, such as 'macs<=50%'")
    check_fits(model, data)
    size = batch_size or BATCH
    number = math.ceil(examples / size)
    few = list(itertools.islice(data.batches(size, seed=seed), number))
    held_out = list(itertools.islice(batches_of(data.validation, size, workers=data.workers), number))
    result = prune(
        model,
        data.example_inputs,
        method=look,
        target=target,
        data=Splits(few, held_out),
        loss_fn=learned_by(data),
        ignored_layers=ignored_layers,
        allow=allow,
        allocation=allocation,
        repair=repair,
        seed=seed,
        progress=False,
    )
    judge = judged_by(data, model)
    steps = steps_of(chosen, data, size, recovery, len(result.plan.groups))
    first = as_batches(few, model).first()[0]
    duration = None if steps is None else Duration(*steps, seconds_of_a_step(model, first))
    return Forecast(
        result.plan,
        judge(model, held_out),
        judge(result.model, held_out),
        look.name if look is chosen else f"{look.name} in place of {chosen.name}",
        duration,
    )


@singledispatch
def stand_in(method: Method) -> Method:
    """A method that looks where the given one learns."""
    return method


@stand_in.register
def _of_units(method: PosteriorMethod) -> Method:
    return Taylor()


@stand_in.register
def _of_weights(method: MaskMethod) -> Method:
    return replace(method, epochs=0, tune_epochs=0)  # type: ignore[type-var, call-arg]
