"""What a model of timm says of its own widths: a new classifier and whoever builds upon its features go by it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prunus.plan.plan import Plan
from prunus.runtime.modes import eval_mode

CHANNELS_LAST = ("NHWC", "NLC")
"""Names that timm has for tensors with channels in the last dimension."""


def keep_feature_widths_true_(model: nn.Module, plan: Plan) -> None:
    """Let `feature_info`, `num_features` and `head_hidden_size` of a pruned timm model say its widths.

    They are read off one run, on an image of the recorded size. Other models are left alone.

    Args:
        model: the smaller model, in its own class.
        plan: what it was made by.
    """
    entries = getattr(model, "feature_info", None)
    image = plan.inputs[0] if len(plan.inputs) == 1 else None
    own = all(callable(getattr(model, name, None)) for name in ("forward_features", "forward_head"))
    if image is None or not own or not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        return
    held = next(model.parameters())
    picture = torch.zeros((1, *image.shape[1:]), dtype=getattr(torch, image.dtype), device=held.device)
    modules, widths = dict(model.named_modules()), dict[str, int]()
    with ExitStack() as within:
        within.enter_context(eval_mode(model))
        within.enter_context(torch.no_grad())
        for name in {entry.get("module") for entry in entries} & modules.keys():
            within.callback(modules[name].register_forward_hook(_note(model, widths, name)).remove)
        features = model.forward_features(picture)  # type: ignore[operator]
        hidden = model.forward_head(features, pre_logits=True)  # type: ignore[operator]
    model.feature_info = [
        {**entry, "num_chs": widths.get(entry.get("module"), entry.get("num_chs"))} for entry in entries
    ]  # type: ignore[assignment]
    _renew_(model, "num_features", _channels(model, features))
    _renew_(model, "head_hidden_size", hidden.shape[1])
    if isinstance(head := getattr(model, "head", None), nn.Module):
        _renew_(head, "in_features", _channels(model, features))
        _renew_(head, "num_features", hidden.shape[1])


def _note(model: nn.Module, widths: dict[str, int], name: str) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            widths[name] = _channels(model, output)

    return hook


def _channels(model: nn.Module, features: Tensor) -> int:
    last = features.dim() != 4 or getattr(model, "output_fmt", "") in CHANNELS_LAST
    return features.shape[-1 if last else 1]


def _renew_(holder: nn.Module, attribute: str, width: int) -> None:
    if isinstance(vars(holder).get(attribute), int):
        setattr(holder, attribute, width)
