"""Plans tried: each repaired, and judged by how far the result is from the dense network on examples it wasn't fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from prunus.data.dense_outputs import DenseOutputs
from prunus.graph.grouping import Graph
from prunus.plan.plan import Plan
from prunus.refit.layers import RepairConfig, refit_layers
from prunus.refit.lockstep import Lockstep
from prunus.runtime.arguments import examples_in
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision


class Trials:
    """What plans lose after repair.

    Args:
        model: the dense network.
        graph: the same, captured with a free batch size.
        batches: inputs; every second example is held out.
        distance: of outputs from the dense network's.
        config: how layers are refitted.
        seed: of the rows.
    """

    def __init__(
        self, model: nn.Module, graph: Graph, batches: Sequence[Any], distance: DenseOutputs, config: RepairConfig,
        seed: int,
    ) -> None:  # fmt: skip
        self.model, self.graph, self.batches, self.distance = model, graph, list(batches), distance
        self.config, self.seed = config, seed

    def loss(self, plan: Plan) -> float:
        """Distance from the dense network, mean over the held-out examples."""
        with eval_mode(self.model), torch.no_grad(), full_precision():
            run = Lockstep(self.graph, plan, self.model)
            refit_layers(run, self.batches, plan, self.config, self.seed, False, judged=True)
            total, count, before = 0.0, 0, 0
            for number, batch in enumerate(self.batches):
                size, every = examples_in(batch), self.config.held_out
                held = (torch.arange(before, before + size) % every) == every - 1
                before += size
                dense, masked = run.outputs(number)
                inputs, dense, masked = (_rows(v, held) for v in (batch, dense, masked))
                here = int(held.sum())
                if here:
                    total += here * float(self.distance(masked, self.distance.target(inputs, dense)))
                    count += here
        return total / max(count, 1)


def _rows(value: Any, chosen: torch.Tensor) -> Any:
    size = len(chosen)

    def part(t: torch.Tensor) -> torch.Tensor:
        return t[chosen.to(t.device)] if t.dim() and t.shape[0] == size else t

    return torch.utils._pytree.tree_map_only(torch.Tensor, part, value)
