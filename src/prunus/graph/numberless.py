"""Calling a model for the form of what it returns, also on the device `meta`, where its tensors hold no numbers."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def called(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the model returns.

    Code that asks a tensor for a number can't run on `meta`. Much of it asks less where it is captured, which it tells
    by the kind of its tensors, as they are here in the second try.
    """
    try:
        return model(*args, **kwargs)
    except RuntimeError as error:
        on_meta = any(p.device.type == "meta" for p in model.parameters())
        if not on_meta or "meta" not in str(error).lower():
            raise
        with FakeTensorMode(allow_non_fake_inputs=True):
            return model(*args, **kwargs)
