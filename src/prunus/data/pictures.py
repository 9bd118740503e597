"""Pictures in files, decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prunus.data.preparation import Preparation
from prunus.data.registry import Change
from prunus.errors import DataError, MissingDependencyError, first_line

Files = np.ndarray[Any, np.dtype[np.bytes_]]


def pillow(where: str) -> Any:
    """Pillow's module `Image`. Raises MissingDependencyError, naming `where`, if it is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        fix = "pip install 'prunus[images]'"
        raise MissingDependencyError(where, f"Pillow, which decodes pictures, is not there: {error}", fix) from error
    return Image


class Pictures(Dataset[Any]):
    """Pictures in files with a label each, or without; usable with torch's DataLoader.

    Args:
        folder: what the names are relative to.
        files: names, as the file system's bytes: an array has no reference counts that workers would copy.
        labels: int64 [N]; None if there are none.
        preparation: what is done to every picture.
        augment: what is done at random.
        skips: whether pictures that can't be read are left out of batches instead of refused.
    """

    def __init__(
        self,
        folder: Path,
        files: Files,
        labels: Tensor | None,
        preparation: Preparation,
        augment: tuple[Change, ...] = (),
        *,
        skips: bool = False,
    ) -> None:
        self.folder, self.files, self.labels = folder, files, labels
        self.preparation, self.augment, self.skips = preparation, augment, skips

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        """Float32 [C, H, W] and label, or the former alone."""
        found = self.raw(index)
        return self.normalise(found) if self.labels is None else (self.normalise(found[0]), found[1])

    def raw(self, index: int) -> Any:
        """The same as uint8, of which `normalise` makes float32.

        Raises:
            DataError: the file is no picture, is cut off, or has another size than the network takes.
        """
        path = self.path(index)
        image = pillow(str(path))
        try:
            with image.open(path) as opened:
                pixels = self.preparation.prepared(opened, self.augment)
        except (OSError, ValueError, SyntaxError, EOFError, image.DecompressionBombError) as error:
            what = f"it is no picture that can be read: {first_line(error)}"
            fix = "mend or remove it, or leave such out (--load broken=skip, Reading(broken='skip'))"
            raise DataError(str(path), what, fix) from error
        return pixels if self.labels is None else (pixels, self.labels[index])

    def path(self, index: int) -> Path:
        """Of one picture."""
        return self.folder / os.fsdecode(bytes(self.files[index]))

    def normalise(self, pixels: Tensor) -> Tensor:
        """See `Preparation.normalised`."""
        return self.preparation.normalised(pixels)

    def subset(self, indices: Tensor, augment: tuple[Change, ...] = ()) -> Pictures:
        """Those at `indices` (int64 [M]), with these random changes."""
        labels = None if self.labels is None else self.labels[indices]
        files = self.files[indices.numpy()]
        return Pictures(self.folder, files, labels, self.preparation, augment, skips=self.skips)


def names_below(folder: Path, within: Path, suffixes: Collection[str]) -> list[bytes]:
    """Every file below `within` with one of these suffixes, sorted, relative to `folder`; hidden ones are left out."""
    found = []
    for place, folders, names in os.walk(within, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        below = os.path.relpath(place, folder)
        kept = (n for n in names if not n.startswith(".") and os.path.splitext(n)[1].lower() in suffixes)
        found += [os.fsencode(os.path.join(below, name)) for name in sorted(kept)]
    return found


def sizes_of(folder: Path, files: Files, image: Any, look: int = 64) -> set[tuple[int, int]]:
    """Heights and widths of pictures evenly spread over the files, from their headers; unreadable ones are passed."""
    found = set()
    for index in torch.linspace(0, len(files) - 1, min(look, len(files)), dtype=torch.float64).round().long().tolist():
        try:
            with image.open(folder / os.fsdecode(bytes(files[index]))) as opened:
                found.add((opened.height, opened.width))
        except (OSError, ValueError, SyntaxError, image.DecompressionBombError):
            continue
    return found
