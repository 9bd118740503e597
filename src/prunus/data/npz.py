"""NumPy's archives of arrays: one piece, or training, validation and test under names of their own."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.data.datasets import ArrayDataset, DataSource, split_indices
from prunus.data.losses import cross_entropy
from prunus.data.registry import DataRequest, data_source
from prunus.errors import DataError, first_line

INPUTS, TARGETS = ("x", "inputs", "images", "data"), ("y", "labels", "label", "targets", "target")
PARTS = (("train",), ("val", "valid", "validation"), ("test",))
Arrays = dict[str, np.ndarray[Any, Any]]


@data_source(
    "npz",
    form="npz:FILE",
    help="arrays x and y, or x_train, y_train, x_test, y_test (images, labels, ... too)",
    reads=("test", "mean", "std", "loss"),
)
def npz(file: str, asked: DataRequest) -> DataSource:
    """Arrays in memory: uint8 images, also [N, H, W] and with the channels last; numbers; token ids.

    Raises:
        DataError: no such file, no arrays of known names, or arrays that don't go together.
    """
    where = f"data 'npz:{file}'"
    arrays = _read(Path(file), where)
    found = [_pair(arrays, names, where, asked) for names in PARTS]
    whole = _pair(arrays, ("",), where, asked)
    parts = [p for p in found if p is not None]
    if found[0] is None and whole is None:
        what = f"it holds {', '.join(arrays) or 'nothing'}"
        raise DataError(where, what, "call the arrays x and y, or x_train, y_train, x_test and y_test")
    if len(parts) == 3:
        train, validation, test = parts
    elif len(parts) == 2 and found[0] is not None:
        stays, held_out = split_indices(_kinds(parts[0]), asked.validation, asked.seed)
        train, validation, test = parts[0].subset(stays), parts[0].subset(held_out), parts[1]
    elif whole is not None and parts:
        what = "it holds arrays without a part's name beside others of a part"
        raise DataError(where, what, "call them x_train and y_train, or take the others out")
    else:
        one = whole or parts[0]
        train, validation, test = (one.subset(indices) for indices in asked.cut(_kinds(one)))
    numbers = train.labels.is_floating_point()
    classes = 0 if numbers else 1 + int(max(p.labels.max() for p in (train, validation, test)))
    counts = " + ".join(f"{len(part):,}" for part in (train, validation, test))
    told = f"{Path(file).name}: {counts} examples to train, validate, test"
    loss = nn.MSELoss() if numbers else cross_entropy
    return DataSource(Path(file).stem, train, validation, test, classes, loss_fn=loss, told=told)


def _read(path: Path, where: str) -> Arrays:
    if not path.is_file():
        raise DataError(where, "no such file", "check the path")
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name.lower(): held[name] for name in held.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(
            where, f"it can't be read: {first_line(error)}", "write it by numpy.savez, plain arrays"
        ) from error


def _pair(arrays: Arrays, names: tuple[str, ...], where: str, asked: DataRequest) -> ArrayDataset | None:
    """Inputs and targets under the names of one part, the empty name for data in one piece."""
    inputs, targets = (_named(arrays, kinds, names) for kinds in (INPUTS, TARGETS))
    if inputs is None or (targets is None and asked.labelled):
        return None
    x = _inputs(inputs, where)
    y = (
        torch.zeros(len(x), dtype=torch.int64, device="cpu")
        if targets is None
        else _targets(targets, where, asked.reading.loss)
    )
    if len(x) != len(y):
        raise DataError(where, f"{len(x)} inputs for {len(y)} targets", "give one target for each")
    return ArrayDataset(x, y, asked.reading.mean or (0.0,), asked.reading.std or (1.0,))


def _named(arrays: Arrays, kinds: tuple[str, ...], parts: tuple[str, ...]) -> np.ndarray[Any, Any] | None:
    for kind in kinds:
        for part in parts:
            for name in (f"{kind}_{part}", f"{part}_{kind}") if part else (kind,):
                if name in arrays:
                    return arrays[name]
    return None


def _inputs(array: np.ndarray[Any, Any], where: str) -> Tensor:
    if array.dtype == np.uint8:
        if array.ndim == 3:
            array = array[:, None]
        elif array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
            array = array.transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(array))
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    if array.dtype.kind in "iu":
        return torch.from_numpy(array.astype(np.int64))
    raise DataError(where, f"inputs of type {array.dtype}", "give numbers: uint8 images, float32, or token ids")


def _targets(array: np.ndarray[Any, Any], where: str, loss: str) -> Tensor:
    if array.dtype.kind not in "fiu":
        raise DataError(where, f"targets of type {array.dtype}", "give class numbers, or numbers")
    if loss == "cross_entropy" and array.dtype.kind == "f":
        if not np.array_equal(array, np.floor(array)):
            raise DataError(where, "targets that are no classes", "number the classes from 0, or leave out loss")
        array = array.astype(np.int64)
    if array.dtype.kind == "f" or loss == "mse":
        found = torch.from_numpy(array.astype(np.float32))
        return found[:, None] if found.dim() == 1 else found
    found = torch.from_numpy(array.astype(np.int64))
    return found[:, 0] if found.dim() == 2 and found.shape[1] == 1 else found


def _kinds(part: ArrayDataset) -> Tensor:
    one_each = part.labels.dim() == 1 and not part.labels.is_floating_point()
    return part.labels if one_each else torch.zeros(len(part), dtype=torch.int64, device="cpu")
