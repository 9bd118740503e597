"""Data sets of the library `datasets`, from a folder or by name: pictures, texts, or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prunus.data.datasets import DataSource, split_indices
from prunus.data.losses import own_loss
from prunus.data.pictures import DecodedPictures, unreadable
from prunus.data.preparation import Preparation
from prunus.data.prepared import preparation_of
from prunus.data.registry import PICTURES, TABLES, Change, DataRequest, check_known, data_source
from prunus.data.tables import TARGETS, table_source
from prunus.data.texts import home_of, load_tokenizer
from prunus.errors import ConfigError, DataError, first_line
from prunus.runtime.extras import from_extra

PARTS = (("train",), ("validation", "val", "valid", "dev"), ("test",))
SAVED = ("dataset_dict.json", "dataset_info.json")
Names = tuple[str, ...]
TEXTS, PICTURES_OF = ("test", "target", "columns", "length", "workers"), (*PICTURES, "target", "columns")
"""Settings that are looked at, of texts and of pictures."""
LOOK = 16
"""Pictures whose sizes are looked at."""


@data_source(
    "hf-dataset",
    form="hf-dataset:DIR_OR_NAME",
    help="of the library `datasets`, saved or by NAME,CONFIG: pictures, texts or numbers",
    reads=tuple(dict.fromkeys((*PICTURES, *TABLES, "length"))),
)
def hf_dataset(place: str, asked: DataRequest) -> DataSource:
    """A data set in its own parts; where it has one alone it is cut by a seed.

    Raises:
        MissingDependencyError: datasets is not installed.
        DataError: it can't be loaded, or holds nothing that a network could be given.
        ConfigError: no such column, texts without a tokenizer, or an impossible split.
    """
    where = f"data 'hf-dataset:{place}'"
    library = from_extra("datasets", "datasets", where)
    parts = _parts(_loaded(library, place, where), where)
    features = parts[0].features
    target = _target(features, asked.reading.target, where) if asked.labelled else None
    chosen = asked.reading.columns or tuple(n for n in features if n != target)
    missing = [n for n in chosen if n not in features]
    if missing:
        raise ConfigError(where, f"there is no column {', '.join(missing)}", f"use some of {', '.join(features)}")
    name = Path(place).name.replace(",", " ")
    pictures = [n for n in chosen if isinstance(features[n], library.Image)][:1]
    texts = [n for n in chosen if getattr(features[n], "dtype", "") in ("string", "large_string")][:2]
    parts = [parts[0], *(p for p in parts[1:] if target is None or _judged(p, target))]
    read = pictures or texts
    check_known(where, asked.reading, PICTURES_OF if pictures else TEXTS if texts else TABLES)
    if left := [n for n in asked.reading.columns if read and n not in read]:
        what = f"there is no place for column {', '.join(left)} beside {', '.join(read)}"
        raise ConfigError(where, what, "give columns of one kind: a picture, one or two texts, or numbers")
    if not read:
        return table_source([p.with_format("arrow")[:] for p in parts], name, where, asked)
    if target is not None and getattr(features[target], "dtype", "") in ("string", "large_string"):
        fix = f"number its classes: data.class_encode_column({target!r}), before they are cut in parts"
        raise DataError(where, f"column {target!r} holds texts, no classes", fix)
    cut = _cut(parts, target, asked)
    classes = tuple(getattr(features[target], "names", None) or ()) if target is not None else ()
    if pictures:
        return _of_pictures(cut, pictures[0], target, name, where, asked, classes)
    return _of_texts(cut, texts, target, name, asked, classes)


def _of_pictures(
    cut: Sequence[Any],
    column: str,
    target: str | None,
    name: str,
    where: str,
    asked: DataRequest,
    classes: Names,
) -> DataSource:
    made, augment = preparation_of(asked, _sizes(cut[0], column, where), where)
    skips = asked.reading.broken == "skip"
    parts = [StoredPictures(p, column, target, made, () if i else augment, skips=skips) for i, p in enumerate(cut)]
    train, validation, test = parts
    told = f"{name}: {_counts(parts)} pictures to train, validate, test; {made.describe(augment)}"
    workers = asked.reading.workers
    return DataSource(name, train, validation, test, len(classes), classes=classes, workers=workers, told=told)


def _of_texts(
    cut: Sequence[Any], columns: list[str], target: str | None, name: str, asked: DataRequest, classes: Names
) -> DataSource:
    tokenizer = load_tokenizer(home_of(name, asked.model))
    parts = [Texts(p, columns, target, tokenizer, asked.reading.length) for p in cut]
    train, validation, test = parts
    told = f"{name}: {_counts(parts)} texts to train, validate, test; {' and '.join(columns)}, {target or 'no labels'}"
    source = DataSource(
        name, train, validation, test, len(classes), classes=classes, workers=asked.reading.workers, told=told
    )
    return source if target is None else replace(source, loss_fn=own_loss)


class StoredPictures(DecodedPictures):
    """Pictures of a data set of `datasets`, see `DecodedPictures`."""

    def __init__(
        self,
        rows: Any,
        column: str,
        target: str | None,
        preparation: Preparation,
        augment: tuple[Change, ...],
        *,
        skips: bool,
    ) -> None:
        labels = None if target is None else torch.tensor(rows[target][:], dtype=torch.int64, device="cpu")
        super().__init__(labels, preparation, augment, skips=skips)
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def name_of(self, index: int) -> str:
        """Its number."""
        return f"example {index}"

    def opened(self, index: int) -> AbstractContextManager[Any]:
        """See `DecodedPictures.opened`."""
        return nullcontext(_image(self.rows, index, self.column))


class Texts(Dataset[Any]):
    """Texts, or pairs of them, cut by a tokenizer; a batch is a dict of tensors, as long as its longest text."""

    def __init__(self, rows: Any, columns: list[str], target: str | None, tokenizer: Any, length: int) -> None:
        self.rows, self.columns, self.target = rows, columns, target
        self.tokenizer, self.length = tokenizer, length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        found = dict(self.tokenizer(*(row[c] for c in self.columns), truncation=True, max_length=self.length))
        return found if self.target is None else {**found, "labels": row[self.target]}

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Examples of any lengths as one batch."""
        return dict(self.tokenizer.pad(list(examples), return_tensors="pt"))


def _image(rows: Any, index: int, column: str) -> Any:
    found = rows[index][column]
    if found is None:
        raise ValueError("the row holds none")
    return found


def _sizes(rows: Any, column: str, where: str) -> set[tuple[int, int]]:
    """Heights and widths of the first pictures; those that can't be read are passed."""
    found = set()
    for index in range(min(LOOK, len(rows))):
        try:
            image = _image(rows, index, column)
            found.add((image.height, image.width))
        except unreadable(where):
            continue
    return found


def _loaded(library: Any, place: str, where: str) -> Any:
    try:
        if any((Path(place) / saved).is_file() for saved in SAVED):
            return library.load_from_disk(place)
        name, _, config = place.partition(",")
        return library.load_dataset(name, config or None)
    except Exception as error:  # whatever a hub, a script or a folder comes to
        fix = "give a folder that save_to_disk wrote, or a name on the hub"
        raise DataError(where, f"it can't be loaded: {first_line(error)}", fix) from error


def _parts(found: Any, where: str) -> list[Any]:
    """Training first; without names all of it."""
    if not isinstance(found, Mapping):
        return [found]
    parts = [next((found[n] for n in names if n in found), None) for names in PARTS]
    if parts[0] is None:
        raise DataError(where, f"it has parts {', '.join(found)} and none to train on", "give one that is called train")
    return [p for p in parts if p is not None]


def _target(features: Any, asked: str | None, where: str) -> str:
    found = asked or next((t for t in TARGETS if t in features), None)
    if found is None or found not in features:
        what = f"it has the columns {', '.join(features)}, and none of them is called {asked or TARGETS[0]}"
        raise ConfigError(where, what, "say which is predicted: --load target=COLUMN, or learn without labels")
    return found


def _judged(part: Any, target: str) -> bool:
    """False for a part whose labels are kept back: all are -1."""
    return part.unique(target) != [-1]


def _cut(parts: list[Any], target: str | None, asked: DataRequest) -> list[Any]:
    if len(parts) == 3:
        return parts
    first = parts[0]
    labels = torch.zeros(len(first), dtype=torch.int64, device="cpu")
    if target is not None:
        labels = torch.tensor(first[target][:], device="cpu")
    if len(parts) == 2:
        stays, held_out = split_indices(labels, asked.validation, asked.seed)
        return [first.select(stays.tolist()), first.select(held_out.tolist()), parts[1]]
    return [first.select(indices.tolist()) for indices in asked.cut(labels)]


def _counts(parts: Sequence[Any]) -> str:
    return " + ".join(f"{len(part):,}" for part in parts)
