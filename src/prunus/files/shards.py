"""Weights that lie in safetensors shards: read by name, one tensor or some of its rows at a time, and written so."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunus.errors import ArtifactError, first_line
from prunus.files.atomic import refusing, staging, write_text
from prunus.files.weightfile import DTYPES

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""As transformers names a file with all weights, and the index of several."""
FIX = "copy the folder again"
PIECE = 2**24
"""Bytes that are copied at once."""


class Shards:
    """Tensors by name from the safetensors files of a folder; nothing is kept in memory.

    Args:
        folder: with an index and the shards that it names, or one file of weights.

    Attributes:
        files: tensor -> the file that holds it.
        shapes: tensor -> its shape.
        dtypes: tensor -> its dtype.

    Raises:
        ArtifactError: neither is there, a shard is missing or damaged, or one lacks a tensor that the index promises.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        promised = _promised(folder)
        self.files: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        known = {text: dtype for dtype, text in DTYPES.items()}
        for name in dict.fromkeys(promised.values()) if promised else [ONE]:
            with _opened(folder / name) as file:
                for tensor in file.keys():  # noqa: SIM118 - not a dict
                    if promised and promised.get(tensor) != name:
                        continue
                    described = file.get_slice(tensor)
                    form = str(described.get_dtype())
                    if form not in known:
                        what = f"{tensor!r} is stored as {form}, which isn't a plain number"
                        raise ArtifactError(
                            str(folder / name), what, "give the weights as they were before quantisation"
                        )
                    self.files[tensor], self.dtypes[tensor] = name, known[form]
                    self.shapes[tensor] = tuple(described.get_shape())
        if lost := sorted(set(promised) - set(self.files)):
            what = f"it lacks {lost[0]!r}, which {INDEX} says is there"
            raise ArtifactError(str(folder / promised[lost[0]]), what, FIX)

    def bytes_of(self, name: str) -> int:
        """What a tensor takes, in bytes."""
        return torch.Size(self.shapes[name]).numel() * self.dtypes[name].itemsize

    def read(self, name: str) -> Tensor:
        """One tensor, as it is stored, in memory of its own. Raises ArtifactError."""
        with _opened(self.folder / self.files[name]) as file:
            return file.get_tensor(name).clone()  # type: ignore[no-any-return]

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor as they are stored, piece by piece. Raises ArtifactError."""
        path = self.folder / self.files[name]
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                start, end = json.loads(file.read(length))[name]["data_offsets"]
                file.seek(8 + length + start)
                for place in range(0, end - start, PIECE):
                    yield file.read(min(PIECE, end - start - place))
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(str(path), f"cannot be read: {first_line(error)}", FIX) from error

    def rows(self, name: str, numbers: Tensor) -> Tensor:
        """Some rows of a matrix, [*numbers.shape, columns], read row by row. Raises ArtifactError."""
        distinct, places = numbers.unique(return_inverse=True)
        with _opened(self.folder / self.files[name]) as file:
            part = file.get_slice(name)
            found = torch.cat([part[int(n) : int(n) + 1] for n in distinct])
        return found[places]


class ShardWriter:
    """Writes weights shard by shard; the index comes last, so that a folder without one is unfinished.

    Args:
        folder: is there.
        shards: how many there will be.
    """

    def __init__(self, folder: Path, shards: int) -> None:
        self.folder, self.shards = folder, shards
        self.files: dict[str, str] = {}
        self.size = 0

    def name(self, number: int) -> str:
        """Of a shard, counted from one."""
        return f"model-{number:05d}-of-{self.shards:05d}.safetensors"

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Write one shard; it is whole on the disk when it is there.

        Raises:
            ArtifactError: the system refuses.
        """
        path = self.folder / self.name(number)
        with refusing(path), staging(self.folder) as temporary:
            try:
                save_file({n: t.contiguous() for n, t in tensors.items()}, temporary, metadata={"format": "pt"})
            except SafetensorError as failure:
                raise ArtifactError(str(path), f"cannot be written: {first_line(failure)}", "free space") from failure
            os.replace(temporary, path)
        self.note(number, {n: t.nbytes for n, t in tensors.items()})

    def copy(self, number: int, shards: Shards, names: Sequence[str]) -> None:
        """Write tensors of other shards as they are, in small pieces.

        Raises:
            ArtifactError: the system refuses, or a shard can't be read.
        """
        path, place, header = self.folder / self.name(number), 0, dict[str, Any]({"__metadata__": {"format": "pt"}})
        for name in names:
            held = shards.bytes_of(name)
            described = {"dtype": DTYPES[shards.dtypes[name]], "shape": list(shards.shapes[name])}
            header[name] = {**described, "data_offsets": [place, place + held]}
            place += held
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with refusing(path), staging(self.folder) as temporary:
            with open(temporary, "xb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                for name in names:
                    file.writelines(shards.pieces(name))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        self.note(number, {name: shards.bytes_of(name) for name in names})

    def note(self, number: int, sizes: Mapping[str, int]) -> None:
        """Count tensors of a shard that is there already: name -> bytes."""
        self.files.update(dict.fromkeys(sizes, self.name(number)))
        self.size += sum(sizes.values())

    def finish(self) -> None:
        """Write the index. Raises ArtifactError."""
        text = json.dumps(
            {"metadata": {"total_size": self.size}, "weight_map": dict(sorted(self.files.items()))}, indent=2
        )
        write_text(self.folder / INDEX, text)


def in_portions(names: Sequence[str], sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in their order, in portions that hold no more bytes than that, or one name."""
    found: list[list[str]] = []
    held = most
    for name in names:
        if held + sizes[name] > most:
            found.append([])
            held = 0
        found[-1].append(name)
        held += sizes[name]
    return found


def _promised(folder: Path) -> dict[str, str]:
    """Which file the index says holds each tensor; empty if there is no index."""
    index = folder / INDEX
    if not index.is_file():
        if not (folder / ONE).is_file():
            what = f"there is neither {INDEX} nor {ONE} in it"
            raise ArtifactError(str(folder), what, "give a folder of save_pretrained, with safetensors weights")
        return {}
    try:
        found: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(n): str(f) for n, f in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(str(index), f"cannot be read: {first_line(error)}", FIX) from error
    if odd := sorted({f for f in names.values() if Path(f).name != f}):
        raise ArtifactError(str(index), f"it names {odd[0]!r}, which lies outside of the folder", FIX)
    return names


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ArtifactError(str(path), f"cannot be read: {first_line(error)}", FIX) from error
