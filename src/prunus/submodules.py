"""Submodules: exchange by name, and a kind that is known by its name alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def replace_submodules_(model: nn.Module, made: Mapping[str, nn.Module]) -> nn.Module:
    """Put modules into the places of those of the same names; returns the model."""
    for name, module in made.items():
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, module)
    return model


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is GPT-2's linear layer, x W with W [inputs, outputs]; transformers' class, told by name and shape."""
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.dim() == 2
