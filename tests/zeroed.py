"""What removal must equal: the same network with every tensor element of a removed unit at zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from prunus.graph.grouping import Graph


def zeroed_(model: nn.Module, graph: Graph, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """Every parameter and buffer element of a removed unit set to zero (running variances to one), in place.

    Weight norms are made plain weights first: a row of zeros has no direction, and other zeros change its length.
    """
    plain = _without_norms_(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, stays in kept.items():
            group = graph.group(name)
            gone = np.ones(group.units, bool)
            gone[list(stays)] = False
            for slot in (replace(s, tensor=plain.get(s.tensor, s.tensor)) for s in group.slots):
                if slot.tensor not in tensors:
                    continue  # the lengths of a norm that is off
                hit = torch.from_numpy(np.where(slot.plane >= 0, gone[slot.plane], False))
                tensors[slot.tensor].masked_fill_(hit, 1.0 if slot.tensor.endswith("running_var") else 0.0)
    return model


def _without_norms_(model: nn.Module) -> dict[str, str]:
    """Take weight norms off; returns the names of the directions, mapped to those of the weights."""
    names = {}
    for path, module in list(model.named_modules()):
        if hasattr(module, "weight_v"):
            nn.utils.remove_weight_norm(module)
            names[f"{path}.weight_v"] = f"{path}.weight"
        elif parametrize.is_parametrized(module) and hasattr(module.parametrizations.weight, "original1"):
            weight = module.weight.detach().clone()
            module.__class__ = type(module).__bases__[0]  # torch takes it off the class, which copies share
            del module._modules["parametrizations"]
            module.weight = nn.Parameter(weight)
            names[f"{path}.parametrizations.weight.original1"] = f"{path}.weight"
    return names
