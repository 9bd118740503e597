"""Everything else fitted to new keys and values: repair, with those two left as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunus.data.batches import Loader
from prunus.graph.trace import trace
from prunus.plan.plan import Plan
from prunus.refit.calibration import calibration
from prunus.refit.config import RepairConfig
from prunus.refit.layers import refit_layers
from prunus.refit.lockstep import Lockstep
from prunus.refit.told import Refit
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision


def refitted(
    model: Any,
    given: Mapping[str, Tensor],
    example_inputs: Any,
    loader: Loader,
    config: RepairConfig,
    seed: int,
    progress: bool,
) -> tuple[dict[str, Tensor], tuple[Refit, ...]]:
    """New numbers of the other layers, by name, and what was won back in each.

    Args:
        model: the dense network; not touched.
        given: numbers that it has now instead of its own, by name; their layers stay so.
        example_inputs: that it is analysed on.
        loader: what is looked at.
        config: how.
        seed: of the rows.
        progress: show a bar where there is a terminal.

    Raises:
        DataError: no batch.
        TraceError, SurgeryError: the model can't be run operation by operation.
    """
    plan = Plan.from_kept(trace(model, example_inputs), {})
    data = calibration(model, plan, loader, config, seed)
    run = Lockstep(data.graph, plan, model, given)
    with eval_mode(model), torch.no_grad(), full_precision(), run.in_format():
        told = refit_layers(run, data.batches, plan, config, seed, progress, shares=data.shares, fixed=given)
    return {name: new for name, (new, _) in run.replaced.items()}, told
