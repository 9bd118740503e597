"""Pictures in files, decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prunus.data.preparation import Preparation
from prunus.data.registry import Change
from prunus.errors import DataError, first_line
from prunus.runtime.extras import from_extra

Files = np.ndarray[Any, np.dtype[np.bytes_]]


def pillow(where: str) -> Any:
    """Pillow's module `Image`. Raises MissingDependencyError, naming `where`, if it is not installed."""
    return from_extra("PIL.Image", "images", where)


class DecodedPictures(Dataset[Any]):
    """Pictures that are decoded as they are asked for, with a label each, or without; usable with torch's DataLoader.

    Args:
        labels: int64 [N]; None if there are none.
        preparation: what is done to every picture.
        augment: what is done at random.
        skips: whether pictures that can't be read are left out of batches instead of refused.
    """

    def __init__(
        self, labels: Tensor | None, preparation: Preparation, augment: tuple[Change, ...], *, skips: bool
    ) -> None:
        self.labels, self.preparation, self.augment, self.skips = labels, preparation, augment, skips

    def name_of(self, index: int) -> str:
        """What a picture is called in errors."""
        raise NotImplementedError

    def opened(self, index: int) -> AbstractContextManager[Any]:
        """One of Pillow's images."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Any:
        """Float32 [C, H, W] and label, or the former alone."""
        found = self.raw(index)
        return self.normalise(found) if self.labels is None else (self.normalise(found[0]), found[1])

    def raw(self, index: int) -> Any:
        """The same as uint8, of which `normalise` makes float32.

        Raises:
            DataError: it is no picture, is cut off, or has another size than the network takes.
        """
        name = self.name_of(index)
        try:
            with self.opened(index) as opened:
                pixels = self.preparation.prepared(opened, self.augment)
        except unreadable(name) as error:
            what = f"it is no picture that can be read: {first_line(error)}"
            fix = "mend or remove it, or leave such out (--load broken=skip, Reading(broken='skip'))"
            raise DataError(name, what, fix) from error
        return pixels if self.labels is None else (pixels, self.labels[index])

    def normalise(self, pixels: Tensor) -> Tensor:
        """See `Preparation.normalised`."""
        return self.preparation.normalised(pixels)


def unreadable(where: str) -> tuple[type[Exception], ...]:
    """What Pillow raises for a file that is no picture. Raises MissingDependencyError, naming `where`, without it."""
    return OSError, ValueError, SyntaxError, EOFError, pillow(where).DecompressionBombError


class Pictures(DecodedPictures):
    """Pictures in files; see `DecodedPictures`.

    Args:
        folder: what the names are relative to.
        files: names, as the file system's bytes: an array has no reference counts that workers would copy.
        labels: of them, and so on.
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
        super().__init__(labels, preparation, augment, skips=skips)
        self.folder, self.files = folder, files

    def __len__(self) -> int:
        return len(self.files)

    def name_of(self, index: int) -> str:
        """Its path."""
        return str(self.path(index))

    def opened(self, index: int) -> AbstractContextManager[Any]:
        """See `DecodedPictures.opened`."""
        path = self.path(index)
        return pillow(str(path)).open(path)  # type: ignore[no-any-return]

    def path(self, index: int) -> Path:
        """Of one picture."""
        return self.folder / os.fsdecode(bytes(self.files[index]))

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
        except unreadable(str(folder)):
            continue
    return found
