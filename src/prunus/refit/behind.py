"""What a layer should make in the masked network, seen from the end of the path behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.refit.calls import LayerCall
from prunus.refit.lockstep import Lockstep
from prunus.refit.paths import Path, Step, carried_back, forward


@dataclass(frozen=True)
class Behind:
    """The path behind a layer, and the sums on it whose other side the masked network knows by then."""

    path: Path
    known: tuple[Step, ...]

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Of the clamp at the end, where all that is summed on the way to it is known."""
        return self.path.bounds if len(self.known) == len(self.path.sums) else None

    def targets(self, run: Lockstep, number: int, call: LayerCall) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Of one batch: what the layer should make, without its bias; and for a clamp behind, what it meets there.

        Returns:
            Three tensors of the shape of the layer's output, the last two None where there is no clamp: the target;
            what the dense network holds at the clamp, laid at the layer's output; and by what a change of the target
            changes that.
        """
        dense, masked = run.held(number)
        made, values = dense[call.node], dense
        missing = {
            step.node: step.sign * (dense[step.other] - masked[step.other])
            for step in self.known
            if step.other is not None and run.differs(step.other)
        }
        wanted = made
        if call.bias is not None:
            dim = call.channel_dim(made, values[call.weight])
            wanted = made - values[call.bias].reshape([-1 if d == dim else 1 for d in range(made.dim())])
        if not missing and self.bounds is None:
            return wanted, None, None
        on_path = forward(self.path, made, values)
        shapes = [t.shape for t in on_path]
        if missing:
            wanted = wanted + carried_back(self.path, None, missing, shapes, values)
        if self.bounds is None:
            return wanted, None, None
        ones = torch.ones_like(on_path[-1])
        back, scaled = (carried_back(self.path, t, {}, shapes, values) for t in (ones, on_path[-1]))
        passes = back != 0
        factor = torch.where(passes, 1 / torch.where(passes, back, torch.ones_like(back)), torch.zeros_like(back))
        return wanted, scaled * factor, factor
