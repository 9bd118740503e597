"""What a run was made from, as short digests: so that no other weights and no other data are resumed in their place."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import DataError
from prunus.runtime.entry import generators_kept

ITEMS = 16
"""Examples of a data set that are read for its digest, evenly spread."""


def weights_digest(model: nn.Module) -> str:
    """Digest of all parameters and buffers, names, types and shapes included; the same on every device."""
    state = dict(model.state_dict())
    return tree_digest({**dict(model.named_buffers()), **state})


def tree_digest(tree: Any) -> str:
    """Digest of nested mappings and sequences of tensors, arrays, numbers and texts; mappings count by name."""
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, tree)
    return digest.hexdigest()


def data_digest(batches: Any) -> str:
    """Digest of what a loader reads, without iterating over it.

    Data in memory (tensors and arrays that the list, the loader, its data set or what that wraps hold) count whole. Of
    a data set that is read by number its length and 16 evenly spread examples count, each read twice under one seed:
    where the two differ, only their shapes count, and of one that can't be read only that. What can only be iterated
    over is known by its type and length.

    Args:
        batches: a list of batches, a loader with a `dataset`, or an object that holds its tensors.
    """
    dataset = getattr(batches, "dataset", None)
    source = batches if dataset is None or hasattr(batches, "__getitem__") else dataset
    parts: list[Any] = [type(source).__name__, _length(batches), getattr(batches, "batch_size", None)]
    if isinstance(source, list | tuple | Mapping):
        return tree_digest([*parts, source])
    reads = hasattr(source, "__getitem__") and _length(source)
    examples = [_example(source, i) for i in _spread(len(source))] if reads else []
    return tree_digest([*parts, _length(source), _held(source), examples])


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None


def _held(source: Any, depth: int = 2) -> dict[str, Any]:
    """The tensors and arrays that an object holds, alone or in sequences and mappings, also one object deeper."""
    found: dict[str, Any] = {}
    for name, value in sorted(getattr(source, "__dict__", {}).items()):
        if isinstance(value, torch.Generator | nn.Module):
            continue
        if _is_data(value):
            found[name] = value
        elif depth > 1 and hasattr(value, "__dict__") and not callable(value):
            found |= {f"{name}.{k}": v for k, v in _held(value, depth - 1).items()}
    return found


def _is_data(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_is_data(v) for v in value.values())
    if isinstance(value, list | tuple):
        return any(_is_data(v) for v in value[:ITEMS])
    return isinstance(value, Tensor | np.ndarray)


def _spread(length: int) -> list[int]:
    return sorted({round(i * (length - 1) / (ITEMS - 1)) for i in range(ITEMS)})


def _example(source: Any, index: int) -> Any:
    try:
        with _seeded():
            first = source[index]
        with _seeded():
            second = source[index]
    except DataError:  # those who read it say whether it may be left out
        return None
    return first if tree_digest(first) == tree_digest(second) else _shapes(first)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """One seed for whatever draws globally, and everything as it was afterwards."""
    with generators_kept():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        yield


def _shapes(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _shapes(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_shapes(v) for v in value]
    return [type(value).__name__, list(getattr(value, "shape", ()))]


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"tensor {value.dtype} {list(value.shape)};".encode())
        digest.update((torch.view_as_real(flat) if flat.is_complex() else flat).view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"array {value.dtype} {list(value.shape)};".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)};".encode())
        for key in sorted(value, key=str):
            digest.update(f"{key!r}:".encode())
            _feed(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"sequence {len(value)};".encode())
        for part in value:
            _feed(digest, part)
    elif isinstance(value, bytes):
        digest.update(b"bytes %d;" % len(value) + value)
    elif value is None or isinstance(value, bool | int | float | str):
        digest.update(f"{value!r};".encode())
    elif hasattr(value, "tobytes"):  # an image
        _feed(digest, value.tobytes())
    else:
        digest.update(f"{type(value).__name__};".encode())
