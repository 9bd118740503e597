"""Data as a user has them (loaders, data sets, pairs of them) as a source in three parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunus.data.batches import Splits, as_batches
from prunus.data.datasets import ArrayDataset, DataSource, Part, batches_of, first_of, read_by_number
from prunus.data.losses import own_loss
from prunus.errors import ConfigError
from prunus.runtime.arguments import signature_of

NAMES = (("train", "training"), ("validation", "val", "valid", "dev"), ("test", "testing"))
FIX = (
    "give prunus.data.Splits(train, validation), (train, validation, test), or "
    "prunus.data.DataSource(name, train, validation, test, loss_fn=..., metric=...)"
)


def source_of(data: Any, model: nn.Module | None = None, name: str = "data") -> DataSource:
    """Data in three parts, from what a user has.

    Each part is anything that a part of a `DataSource` may be: a DataLoader, a data set of torch's, a list of batches.
    Without a word the loss is the model's own where batches are dicts with labels that the model takes, and else the
    cross-entropy.

    Args:
        data: a `DataSource`, `Splits`, two or three parts in a tuple or list (training, validation, test), or a mapping
            of them by these names.
        model: whose forward tells inputs from targets.
        name: short name for reports, where the data have none.

    Raises:
        ConfigError: something else, or no part that is held out.

    Example:
        >>> from prunus.data import source_of
        >>> batches = [(torch.randn(8, 4), torch.arange(8) % 2)]
        >>> source_of((batches, batches)).example_inputs.shape
        torch.Size([2, 4])
    """
    if isinstance(data, DataSource):
        return _known(data, model)
    if isinstance(data, Splits):
        parts: list[Part | None] = [data.train, data.validation]
    elif isinstance(data, Mapping):
        parts = [next((data[n] for n in names if n in data), None) for names in NAMES]
    elif isinstance(data, tuple | list) and 2 <= len(data) <= 3 and all(map(_is_part, data)):
        parts = list(data)
    else:
        what = f"a {type(data).__name__} has no held-out part, by which epochs and plans are chosen"
        raise ConfigError("data", what, FIX)
    train, validation, test = (*parts, None)[:3]
    if train is None or validation is None:
        raise ConfigError("data", "it lacks a part to learn from, or one that is held out", FIX)
    return _known(DataSource(name, train, validation, test), model, guess=True)


def _known(data: DataSource, model: nn.Module | None, *, guess: bool = False) -> DataSource:
    """The source with example inputs as the model's forward wants them, and a loss if none was given."""
    if isinstance(data.train, ArrayDataset):
        return data
    if guess and model is not None:
        key = as_batches(batches_of(data.train, 2, workers=0)).first_key()
        signature = signature_of(model)
        if key is not None and signature is not None and key in signature.parameters:
            data = replace(data, loss_fn=own_loss)
    return data if data.sample is not None else replace(data, sample=first_of(data.train, 2, model))


def _is_part(part: Any) -> bool:
    """Not a tensor, of which a pair would be one batch."""
    return not isinstance(part, torch.Tensor) and (read_by_number(part) or hasattr(part, "__iter__"))
