"""What the loss pays for the units of a group that go, measured: allocations between groups of any kind.

Scores order the units of one group. Between a head and a neuron, or an early and a late layer, their estimates of a
loss are only as good as a straight line drawn far beyond where it was fitted. Here each group alone is cut to a few
sizes, its worst units first, the loss is measured, and every unit gets its share of what its size class costs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from prunus.data.batches import as_batches
from prunus.data.evaluation import standing_loss
from prunus.errors import ConfigError
from prunus.gates.frozen import frozen
from prunus.gates.gate import GateSet, attach
from prunus.graph.groups import ChannelGroup
from prunus.plan.allocation import select
from prunus.plan.plan import Plan
from prunus.proof.masked import masked
from prunus.runtime.precision import ROUNDING, Precision
from prunus.runtime.progress import progress_bar
from prunus.runtime.seeds import seeded
from prunus.runtime.training import LossFunction

Batch = tuple[Any, Any]
SIZES = 6
BATCHES = 4


def measured_scores(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    batches: Sequence[Batch],
    loss_fn: LossFunction,
    *,
    sizes: int = SIZES,
    precision: Precision = "auto",
    progress: bool = False,
) -> dict[str, Tensor]:
    """The mean loss that each unit saves, comparable between groups; ordered as `scores` in each of them.

    Args:
        model: the trained network; unchanged.
        groups: the groups to compare.
        scores: group name -> [K], higher = keep; only their order is used.
        batches: learning data, see `first_batches`; all are seen `sizes` times per group, forward only.
        loss_fn: `loss_fn(outputs, targets)` -> mean loss.
        sizes: kept counts at which each group is measured, evenly spaced; between them the loss is interpolated.
        precision: of the forward passes; `auto` is fp32. The losses are summed in fp64, and differences within the
            rounding of fp32 count as none: the answer doesn't depend on the processor.
        progress: show a progress bar where there is a terminal.

    Returns:
        Group name -> float64 [K], not negative: falling from the best unit to the worst, as if every further unit
        that goes cost at least as much as the one before (isotonic regression of the measured losses).

    Raises:
        DataError: NaN or infinity in the inputs or the loss.
        ConfigError: fewer than two sizes.
    """
    if sizes < 2:
        raise ConfigError("measured_scores", f"sizes={sizes}", "use at least 2")
    result: dict[str, Tensor] = {}
    counts = {g.name: _sizes(g, sizes) for g in groups}
    total = sum(len(c) for c in counts.values()) + 1
    with (
        attach(model, groups) as gates,
        frozen(model),
        progress_bar("loss by size", total, progress) as bar,
    ):

        def loss(kept: Mapping[str, Sequence[int]]) -> float:
            bar.advance()
            return _loss(model, gates, kept, batches, loss_fn, precision)

        whole = loss({})
        cuts = {g.name: [loss(select([g], scores, {g.name: c})) for c in counts[g.name]] for g in groups}
    step = ROUNDING * float(np.median(np.abs([whole, *itertools.chain(*cuts.values())])))
    for group in groups:
        # Above the whole network's loss, in steps: what is useless costs nothing, not one rounding more or less.
        above = [step * round((cut - whole) / step) if step else 0.0 for cut in cuts[group.name]]
        gain = _gains(group, [*counts[group.name], group.units], [*above, 0.0])
        result[group.name] = _by_unit(group, scores[group.name], gain)
    return result


def masked_loss(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    kept: Mapping[str, Sequence[int]],
    batches: Sequence[Batch],
    loss_fn: LossFunction,
    *,
    precision: Precision = "auto",
) -> float:
    """Mean loss over the batches with only the `kept` units of each named group; the model is unchanged.

    Measured in fp32 and summed in fp64 on every processor, unless bf16 is asked for by name.

    Raises:
        DataError: NaN or infinity in the inputs or the loss.
    """
    with attach(model, groups) as gates, frozen(model):
        return _loss(model, gates, kept, batches, loss_fn, precision)


def plan_loss(
    model: nn.Module, plan: Plan, batches: Sequence[Batch], loss_fn: LossFunction, *, precision: Precision = "auto"
) -> float:
    """Mean loss of the network masked as a plan says, blocks among it; otherwise as `masked_loss`."""
    with masked(model, plan), frozen(model):
        return standing_loss(model, batches, loss_fn, precision, "batch")


def first_batches(loader: Iterable[Any], seed: int, count: int = BATCHES) -> list[Batch]:
    """The first `count` batches, the same for one seed whatever shuffles them; the random state is put back.

    Raises:
        DataError: there are none.
    """
    with seeded(seed, alike=True):
        batches = as_batches(loader)
        batches.set_epoch(0)
        return list(itertools.islice(batches, count))


def _sizes(group: ChannelGroup, sizes: int) -> list[int]:
    """Kept counts below the whole, multiples of the rows; at least the smallest possible one."""
    steps = group.units // group.multiple
    chosen = {max(1, round(steps * i / sizes)) for i in range(1, sizes)}
    return sorted(s * group.multiple for s in chosen if s < steps)


def _loss(
    model: nn.Module,
    gates: GateSet,
    kept: Mapping[str, Sequence[int]],
    batches: Sequence[Batch],
    loss_fn: LossFunction,
    precision: Precision,
) -> float:
    values = {}
    for group in gates.groups:
        if group.name in kept:
            values[group.name] = torch.zeros(group.units, dtype=torch.float32, device="cpu")
            values[group.name][list(kept[group.name])] = 1
    gates.fix(values)
    return standing_loss(model, batches, loss_fn, precision, "batch")


def _gains(group: ChannelGroup, counts: Sequence[int], losses: Sequence[float]) -> npt.NDArray[np.float64]:
    """Loss saved by every unit after those that stay at least, [K] by rank, not negative and falling."""
    steps = np.asarray(counts) // group.multiple
    line = np.interp(np.arange(steps[0], steps[-1] + 1), steps, losses)
    if len(line) == 1:
        return np.zeros(group.units)
    from scipy.optimize import isotonic_regression

    falling = isotonic_regression(line[:-1] - line[1:], increasing=False).x.clip(min=0) / group.multiple
    first = np.full(steps[0], falling[0])  # what has not been measured is worth no less than what has
    return np.repeat(np.concatenate([first, falling]), group.multiple)


def _by_unit(group: ChannelGroup, scores: Tensor, gains: npt.NDArray[np.float64]) -> Tensor:
    """Gains by rank laid to the units, the order among equal gains kept."""
    order = np.argsort(-scores.detach().double().cpu().numpy(), kind="stable")
    if group.rows is not None:
        rank = {unit: r for row in range(group.multiple) for r, unit in enumerate(order[group.rows[order] == row])}
        order = np.asarray(sorted(order, key=lambda unit: rank[unit]))
    tie_break = 1e-9 * (gains.max() + 1e-12) * np.arange(group.units)[::-1] / group.units
    result = torch.empty(group.units, dtype=torch.float64, device="cpu")
    result[torch.from_numpy(order)] = torch.from_numpy(gains + tie_break)
    return result
