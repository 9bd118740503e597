"""What a model spec gives, and the registry of the kinds of model specs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunus.models.registry import SpecRegistry


@dataclass(frozen=True)
class LoadedModel:
    """What a model spec names.

    Attributes:
        model: the module, as the callable made it.
        example_inputs: inputs that came with it, batch first, or None.
        name: short name for reports and file names.
    """

    model: nn.Module
    example_inputs: Any | None
    name: str


MODEL_SOURCES: SpecRegistry[Callable[[str], LoadedModel]] = SpecRegistry("model")
model_source = MODEL_SOURCES.register
