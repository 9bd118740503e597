"""What removal must equal: the same network with every tensor element of a removed unit at zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from prunus.graph.grouping import Graph


def zeroed_(model: nn.Module, graph: Graph, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """Every parameter and buffer element of a removed unit set to zero (running variances to one), in place."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, stays in kept.items():
            group = graph.group(name)
            gone = np.ones(group.units, bool)
            gone[list(stays)] = False
            for slot in group.slots:
                hit = torch.from_numpy(np.where(slot.plane >= 0, gone[slot.plane], False))
                tensors[slot.tensor].masked_fill_(hit, 1.0 if slot.tensor.endswith("running_var") else 0.0)
    return model
