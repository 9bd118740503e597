"""Masks learned through the one door, as one thing to look at: the network along with what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

import prunus
from prunus.learning.findings import LearnedMasks
from prunus.methods.base import MaskMethod


@dataclass(frozen=True, kw_only=True)
class Masked(LearnedMasks):
    model: nn.Module
    result: prunus.Result


def masked(
    model: nn.Module, layers: Sequence[str], method: MaskMethod, batches: Any, loss_fn: Any, **options: Any
) -> Masked:
    """The method's own pattern on the named layers; the first batch is what the model is analysed on."""
    target = dict.fromkeys(layers, method.pattern)
    first = next(iter(batches))[0]
    result = prunus.prune(
        model, first, method=method, target=target, data=batches, loss_fn=loss_fn, progress=False, **options
    )
    assert result.masked is not None
    return Masked(**vars(result.masked), model=result.model, result=result)
