"""Layers whose weight is computed from other tensors: torch's parametrizations, weight norms and pruning masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm


def layers_of(model: nn.Module, owners: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules that hold tensors, and those whose parametrizations hold them, each once.

    Args:
        model: the network.
        owners: modules of it that hold a parameter or buffer.
    """
    held = {}
    for layer in model.modules():
        lists = getattr(layer, "parametrizations", None)
        if isinstance(lists, nn.ModuleDict):
            held.update({part: layer for part in lists.modules() if part is not lists})
    found: dict[nn.Module, None] = {}
    for owner in owners:
        found[owner] = None
        if owner in held:
            found[held[owner]] = None
    return list(found)


def recompute_weights_(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Compute anew what hooks (`torch.nn.utils.weight_norm`, `torch.nn.utils.prune`) keep as a plain attribute.

    Yields:
        Steps that put the old attributes back, each before the attribute changes.
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | BasePruningMethod):
            name = hook.name if isinstance(hook, WeightNorm) else hook._tensor_name
            yield _restored(module, name, vars(module).get(name))
            hook(module, None)


def _restored(module: nn.Module, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(module, name, value)
