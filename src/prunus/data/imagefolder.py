"""Pictures in folders, one for each class, decoded as they are asked for: `imagefolder:DIR`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunus.data.datasets import DataSource, split_indices
from prunus.data.pictures import Files, Pictures, names_below, pillow, sizes_of
from prunus.data.prepared import preparation_of
from prunus.data.registry import PICTURES, DataRequest, data_source
from prunus.errors import DataError

TRAIN, VALIDATION, TEST = ("train", "training"), ("val", "valid", "validation", "dev"), ("test", "testing")
SHOWN = 6
"""Names of classes that are told."""


@data_source(
    "imagefolder",
    form="imagefolder:DIR",
    help="pictures in a folder per class, or that in train/, val/, test/; read as they are asked for",
    reads=PICTURES,
)
def imagefolder(folder: str, asked: DataRequest) -> DataSource:
    """Pictures by class folder. Without labels every picture below counts, whatever its folder.

    With train/, val/ and test/ each is what it is called; with train/ and one of the others that one is the test, and
    validation is cut from train/, so that nothing is chosen on what the last number is of; one folder is cut in three.
    A folder of such a name that stands among others and has no folders itself is a class.

    Raises:
        DataError: there is no such folder, no class, or a class without a picture, or one that train/ does not have.
        ConfigError: impossible splits or settings.
        MissingDependencyError: Pillow is not installed.
    """
    where = f"data 'imagefolder:{folder}'"
    image, root = pillow(where), Path(folder)
    if not root.is_dir():
        raise DataError(where, f"there is no folder {root}", "give a folder of pictures")
    suffixes = frozenset(s for s, kind in image.registered_extensions().items() if kind in image.OPEN)
    parts = _parts(root, where, asked.labelled)
    classes = _classes(parts[0], where) if asked.labelled else ()
    found = [_files(part, root, classes, suffixes, where) for part in parts]
    made, augment = preparation_of(asked, sizes_of(root, found[0][0], image), where)
    whole = [Pictures(root, *part, made, skips=asked.reading.broken == "skip") for part in found]
    train, validation, test = _three(whole, asked)
    train = train.subset(torch.arange(len(train)), augment)
    counts = " + ".join(f"{len(part):,}" for part in (train, validation, test))
    some = ", ".join(classes[:SHOWN]) + (", ..." if len(classes) > SHOWN else "")
    named = f" of {len(classes)} classes ({some})" if classes else ", no labels"
    told = f"{root}: {counts} pictures to train, validate, test{named}; {made.describe(augment)}"
    return DataSource(
        root.resolve().name, train, validation, test, len(classes), classes=classes, workers=asked.reading.workers,
        told=told,
    )  # fmt: skip


def _parts(root: Path, where: str, labelled: bool) -> list[Path]:
    """The folders of the parts there are, training first; the root alone if it is one piece."""
    inside = {p.name.lower(): p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")}
    if labelled and set(inside) - {*TRAIN, *VALIDATION, *TEST}:
        inside = {name: p for name, p in inside.items() if any(q.is_dir() for q in p.iterdir())}
    found = [next((inside[n] for n in names if n in inside), None) for names in (TRAIN, VALIDATION, TEST)]
    if found[0] is None and any(found):
        there = ", ".join(p.name for p in found if p is not None)
        raise DataError(where, f"it has {there}/ and no train/", "name the folder to learn from train/")
    if found[0] is not None and not any(found[1:]):
        return [found[0]]
    return [p for p in found if p is not None] or [root]


def _classes(part: Path, where: str) -> tuple[str, ...]:
    names = tuple(sorted(p.name for p in part.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not names:
        what = f"{part} has no folder for any class"
        fix = "put the pictures of each class into a folder, or learn without labels (--labels none)"
        raise DataError(where, what, fix)
    return names


def _files(
    part: Path, root: Path, classes: tuple[str, ...], suffixes: frozenset[str], where: str
) -> tuple[Files, Tensor | None]:
    if not classes:
        names = names_below(root, part, suffixes)
        if not names:
            raise DataError(where, f"no picture in {part}", f"give pictures: {', '.join(sorted(suffixes)[:8])}, ...")
        return np.array(names), None
    more = sorted(set(_classes(part, where)) - set(classes))
    if more:
        what = f"{part} has classes that the training folder has not: {', '.join(more[:SHOWN])}"
        raise DataError(where, what, "use the same folders in all parts")
    every, labels = list[bytes](), list[int]()
    for number, name in enumerate(classes):
        names = names_below(root, part / name, suffixes)
        if not names and (part / name).is_dir():
            fix = f"put pictures into it ({', '.join(sorted(suffixes)[:8])}, ...), or remove it"
            raise DataError(where, f"the class folder {os.path.join(part, name)} holds no picture", fix)
        every += names
        labels += [number] * len(names)
    return np.array(every), torch.tensor(labels, dtype=torch.int64, device="cpu")


def _three(whole: list[Pictures], asked: DataRequest) -> tuple[Pictures, Pictures, Pictures]:
    if len(whole) == 3:
        return whole[0], whole[1], whole[2]
    if len(whole) == 1:
        train, validation, test = (whole[0].subset(indices) for indices in asked.cut(_labels(whole[0])))
        return train, validation, test
    stays, held_out = split_indices(_labels(whole[0]), asked.validation, asked.seed)
    return whole[0].subset(stays), whole[0].subset(held_out), whole[1]


def _labels(part: Pictures) -> Tensor:
    return torch.zeros(len(part), dtype=torch.int64, device="cpu") if part.labels is None else part.labels
