"""Condensed layers where they pay: each masked layer is timed both ways on what it sees, and the faster form stays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError
from prunus.layers.submodules import replace_submodules_
from prunus.masks.file import LayerMask
from prunus.masks.layers import layer_of
from prunus.masks.patterns import takes_pattern
from prunus.runtime.arguments import as_arguments, first_tensor
from prunus.runtime.entry import entry
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import to_device
from prunus.runtime.processes import model_device
from prunus.runtime.timing import NOTICEABLE, interleaved, waiter
from prunus.sparse.layers import condense, has_condensed_form


@entry()
def condense_where_faster_(
    model: nn.Module, masks: Mapping[str, LayerMask], example_inputs: Any, *, repeats: int = 9
) -> dict[str, float | None]:
    """Replace those masked layers by condensed ones that run faster so, on this device and with this batch.

    Args:
        model: with zeros where the masks keep nothing; in its own class (`load(folder, MyModel)`), with its layers.
        masks: by layer, as `load_masks` gives them.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        repeats: timings of each layer, in turns; their medians are compared.

    Returns:
        By layer, time condensed / time as it was; below 0.95 it was replaced. None for a layer that was not called, or
        that has no condensed form (grouped and transposed convolutions, filters).

    Raises:
        ConfigError: a mask does not fit its layer, the weight is not zero outside it, or the model has no layers at
            all (an artifact loaded without its class); the model is as it was.

    Example:
        >>> from prunus.masks.file import LayerMask
        >>> net, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(2, 8)
        >>> mask = torch.zeros(4, 8, dtype=torch.bool).scatter_(1, net[0].weight.abs().topk(2).indices, True)
        >>> with torch.no_grad():
        ...     masked = net[0].weight.mul_(mask)
        >>> ratios = prunus.condense_where_faster_(net, {"0": LayerMask("weight 2/8", mask)}, x)
        >>> ratios["0"] > 0  # time condensed / time as it was
        True
    """
    if not any(takes_pattern(module) for module in model.modules()):
        found_instead = "it has no linear or convolution layers, as an artifact that was loaded without its class"
        raise ConfigError("model", found_instead, "give the class: load(folder, MyModel)")
    device = model_device(model)
    found: dict[str, float | None] = {}
    chosen: dict[str, nn.Module] = {}
    with eval_mode(model), torch.no_grad():
        seen = _first_inputs(model, masks, to_device(example_inputs, device))
        for name, own in masks.items():
            layer, layout = layer_of(model, name), own.layout(model, name)
            if name not in seen or not has_condensed_form(layer, layout):
                found[name] = None
                continue
            small = condense(layer, layout, own.mask.to(device), name).to(device).eval()
            times = interleaved(partial(layer, seen[name]), partial(small, seen[name]), repeats, 2, waiter(device))
            found[name] = ratio = median(times[1]) / median(times[0])
            if ratio < NOTICEABLE:
                chosen[name] = small
    replace_submodules_(model, {n: small.train(layer_of(model, n).training) for n, small in chosen.items()})
    return found


def _first_inputs(model: nn.Module, names: Iterable[str], example_inputs: Any) -> dict[str, Tensor]:
    """What each layer gets when it is first called."""
    seen: dict[str, Tensor] = {}
    args, kwargs = as_arguments(example_inputs, model)
    with ExitStack() as hooks:
        for name in names:
            keep = partial(_keep, seen, name)
            hooks.enter_context(layer_of(model, name).register_forward_pre_hook(keep, with_kwargs=True))
        model(*args, **kwargs)
    return seen


def _keep(seen: dict[str, Tensor], name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    found = first_tensor(layer, args, kwargs)
    if found is not None:
        seen.setdefault(name, found)
