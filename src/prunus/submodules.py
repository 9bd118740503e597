"""Exchange of submodules by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def replace_submodules_(model: nn.Module, made: Mapping[str, nn.Module]) -> nn.Module:
    """Put modules into the places of those of the same names; returns the model."""
    for name, module in made.items():
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, module)
    return model
