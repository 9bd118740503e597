"""Readers of the original MNIST (idx) and CIFAR-10 (binary) files: every byte accounted for, or the file is refused."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunus.errors import DataError

CIFAR_RECORD = 1 + 3 * 32 * 32
CLASSES = 10


def read_idx(path: Path) -> Tensor:
    """An idx file of unsigned bytes, gzipped or not.

    Returns:
        uint8 tensor of the shape that the header tells.

    Raises:
        DataError: the file is missing, truncated, too long, or not idx.
    """
    raw = _read_bytes(path)
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DataError(str(path), "not an idx file of unsigned bytes", "copy the original file again")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    body = raw[4 + 4 * raw[3] :]
    expected = math.prod(shape)
    if len(body) != expected:
        what = f"truncated or damaged: {len(body)} bytes of data, its header tells {expected}"
        raise DataError(str(path), what, "copy the original file again")
    return torch.from_numpy(np.frombuffer(body, np.uint8).reshape(shape).copy())


def read_idx_pair(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 1, H, W] and labels int64 [N] of a split (`train` or `t10k`) in the original file names.

    Raises:
        DataError: files that are missing, damaged, or do not belong together.
    """
    images_path = _idx_path(folder, f"{split}-images-idx3-ubyte")
    labels_path = _idx_path(folder, f"{split}-labels-idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dim() != 3 or not images.numel():
        raise DataError(str(images_path), f"shape {list(images.shape)} is not that of images", "copy the file again")
    if labels.shape != images.shape[:1]:
        what = f"shape {list(labels.shape)} for {len(images)} images of {images_path.name}"
        raise DataError(str(labels_path), what, "use the two files of one split")
    return images.unsqueeze(1), _checked_labels(labels, labels_path)


def read_cifar10(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test part of CIFAR-10's binary version, each images uint8 [N, 3, 32, 32] and labels int64 [N].

    Args:
        folder: holds `data_batch_1.bin` ... `data_batch_5.bin` and `test_batch.bin`, itself or in
            `cifar-10-batches-bin`.

    Raises:
        DataError: files that are missing, truncated or damaged.
    """
    inner = folder / "cifar-10-batches-bin"
    place = inner if inner.is_dir() else folder
    parts = [(place / f"data_batch_{number}.bin") for number in range(1, 6)]
    read = [_read_cifar_file(path) for path in parts]
    for path, (_, labels) in zip(parts, read, strict=True):
        if len(labels) != len(read[0][1]):
            what = f"{len(labels)} records, {parts[0].name} has {len(read[0][1])}: truncated"
            raise DataError(str(path), what, "copy the original files again")
    train = torch.cat([images for images, _ in read]), torch.cat([labels for _, labels in read])
    return train, _read_cifar_file(place / "test_batch.bin")


def _read_cifar_file(path: Path) -> tuple[Tensor, Tensor]:
    raw = _read_bytes(path)
    if not raw or len(raw) % CIFAR_RECORD:
        what = f"truncated or damaged: {len(raw)} bytes are no whole number of records of {CIFAR_RECORD}"
        raise DataError(str(path), what, "copy the file of CIFAR-10's binary version again")
    records = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(-1, CIFAR_RECORD).copy())
    return records[:, 1:].reshape(-1, 3, 32, 32), _checked_labels(records[:, 0], path)


def _checked_labels(labels: Tensor, path: Path) -> Tensor:
    if int(labels.max()) >= CLASSES:
        what = f"damaged: label {int(labels.max())}, the classes are 0 to {CLASSES - 1}"
        raise DataError(str(path), what, "copy the original file again")
    return labels.long()


def _idx_path(folder: Path, name: str) -> Path:
    # Some archives unpack with a dot in place of the first dash before "idx".
    for candidate in (name, f"{name}.gz", name.replace("-idx", ".idx"), f"{name.replace('-idx', '.idx')}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise DataError(str(folder / name), "no such file, gzipped or not", "give the folder of the original idx files")


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file", "check the folder") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(str(path), f"cannot be read: {error}", "copy the original file again") from error
