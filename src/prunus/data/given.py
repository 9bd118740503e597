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
from prunus.data.shared import SharedLoader, shareable
from prunus.errors import ConfigError
from prunus.runtime.arguments import signature_of
from prunus.runtime.processes import distributed, rank

NAMES = (("train", "training"), ("validation", "val", "valid", "dev"), ("test", "testing"))
BATCH = 64
"""Examples of a batch, where the data don't say."""
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


def split_up(data: Any, model: nn.Module | None, seed: int) -> Any:
    """Batches to learn from and held-out ones, of data that come in parts as `source_of` takes them; else what it is.

    A tuple or list of two or three is in parts where each of them is a loader, a data set, or, within a tuple, a list
    of batches; a list of batches stays one. A DataLoader that several processes were given is shared by its rows.

    Args:
        data: of a user, for `prune`.
        model: whose forward tells inputs from targets.
        seed: of the order, where the parts have none of their own.
    """
    parts = isinstance(data, tuple | list) and 2 <= len(data) <= 3 and all(_many(p, type(data)) for p in data)
    named = isinstance(data, Mapping) and any(name in data for name in NAMES[0])
    examples = isinstance(data, Splits) and any(map(read_by_number, (data.train, data.validation)))
    share = {"rank": rank(), "world": torch.distributed.get_world_size()} if distributed() else {}
    if not isinstance(data, DataSource) and not parts and not named and not examples:
        return replace(data, train=_shared(data.train, model)) if isinstance(data, Splits) else _shared(data, model)
    source = source_of(data, model)
    return Splits(
        source.batches(BATCH, seed=seed, **share), batches_of(source.validation, BATCH, workers=source.workers)
    )


def _shared(data: Any, model: nn.Module | None) -> Any:
    """A DataLoader that all of several processes were given as each one's rows of it; anything else as it is."""
    # Processes may have data sets of their own, which no sampler tells of.
    alike = distributed() and shareable(data) and as_batches(data, model).same_on_all_ranks()
    return SharedLoader(data, rank(), torch.distributed.get_world_size()) if alike else data


def _many(part: Any, outer: type) -> bool:
    """Whether a part of a pair is examples or batches, and not one batch."""
    if isinstance(part, torch.Tensor | tuple | Mapping):
        return False
    if isinstance(part, list):
        return outer is tuple and bool(part) and isinstance(part[0], tuple | list | Mapping)
    return _is_part(part)


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
