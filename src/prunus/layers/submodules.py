"""Submodules: exchange by name, choice by names, types and globs, and a kind that is known by its name alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from prunus.errors import ConfigError

Ignored = nn.Module | type[nn.Module] | str
"""What chooses layers: a module, a type of modules, or a name, which may be a glob."""


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


def matching(ignored: Sequence[Ignored], model: nn.Module) -> set[str]:
    """Names of the modules that entries of `ignored_layers` choose, and of everything below these.

    Raises:
        ConfigError: an entry that matches nothing, or no sequence of entries.
    """
    if isinstance(ignored, str | nn.Module | type) or not hasattr(ignored, "__iter__"):
        raise ConfigError("ignored_layers", f"{ignored!r} is one entry", "give a list, such as ['conv1']")
    modules = dict(model.named_modules())
    chosen = set()
    for entry in ignored:
        if isinstance(entry, str):
            found = {n for n in modules if n and fnmatchcase(n, entry)}
        elif isinstance(entry, type):
            found = {n for n, m in modules.items() if isinstance(m, entry)}
        else:
            found = {n for n, m in modules.items() if m is entry}
        if not found:
            near = ", ".join([n for n in modules if n][:8])
            raise ConfigError(
                f"ignored_layers entry {entry!r}",
                "it matches no layer of the model",
                f"use names, globs, types or modules of this model, such as: {near}",
            )
        chosen |= {n for n in modules for f in found if n == f or n.startswith(f"{f}." if f else "")}
    return chosen
