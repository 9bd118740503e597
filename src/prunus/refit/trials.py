"""Plans tried: each repaired, and judged by its distance from the dense network on examples it wasn't fitted to."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunus.data.dense_outputs import DenseOutputs
from prunus.plan.plan import Plan
from prunus.refit.calibration import Calibration
from prunus.refit.config import RepairConfig
from prunus.refit.layers import refit_layers
from prunus.refit.lockstep import Lockstep
from prunus.refit.sampling import held_out
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision
from prunus.runtime.processes import model_device, summed


class Trials:
    """What plans lose after repair.

    Args:
        model: the dense network.
        data: what is looked at; of the examples those that `config` holds out are judged by.
        distance: of outputs from the dense network's.
        config: how layers are refitted.
        seed: of the rows.
    """

    def __init__(
        self, model: nn.Module, data: Calibration, distance: DenseOutputs, config: RepairConfig, seed: int
    ) -> None:
        self.model, self.data, self.distance = model, data, distance
        self.config, self.seed = config, seed

    def loss(self, plan: Plan) -> float:
        """Distance from the dense network, mean over the held-out examples."""
        run = Lockstep(self.data.graph, plan, self.model)
        with eval_mode(self.model), torch.no_grad(), full_precision(), run.in_format():
            batches, shares = self.data.batches, self.data.shares
            refit_layers(run, batches, plan, self.config, self.seed, False, judged=True, shares=shares)
            total, count = 0.0, 0
            for number, batch in enumerate(batches):
                held = held_out(shares[number].numbers, self.config.held_out)
                dense, masked = run.outputs(number)
                inputs, dense, masked = (_rows(v, held) for v in (batch, dense, masked))
                here = int(held.sum())
                if here:
                    total += here * float(self.distance(masked, self.distance.target(inputs, dense)))
                    count += here
        both = summed(torch.tensor([total, count], dtype=torch.float64, device=model_device(self.model)))
        return float(both[0] / both[1].clamp_min(1))


def _rows(value: Any, chosen: torch.Tensor) -> Any:
    size = len(chosen)

    def part(t: torch.Tensor) -> torch.Tensor:
        return t[chosen.to(t.device)] if t.dim() and t.shape[0] == size else t

    return torch.utils._pytree.tree_map_only(torch.Tensor, part, value)
