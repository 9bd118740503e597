"""Tables in files: one row an example, one column what is predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.data.datasets import ArrayDataset, DataSource, split_indices
from prunus.data.losses import cross_entropy
from prunus.data.registry import TABLES, DataRequest, data_source
from prunus.errors import ConfigError, DataError, first_line
from prunus.runtime.extras import from_extra

TARGETS = ("label", "labels", "target", "targets", "class", "y")
"""Columns that are predicted if nobody says which; without any of them it is the last one, or where no label is to be
looked at none."""


@data_source("csv", form="csv:FILE", help="a table with a header; --load target=COLUMN is predicted", reads=TABLES)
def csv(file: str, asked: DataRequest) -> DataSource:
    """A table of numbers. Raises as `table_source` does."""
    return table_source([_read(file, "csv")], Path(file).stem, f"data 'csv:{file}'", asked)


@data_source("parquet", form="parquet:FILE", help="the same of a Parquet file", reads=TABLES)
def parquet(file: str, asked: DataRequest) -> DataSource:
    """A table of numbers. Raises as `table_source` does."""
    return table_source([_read(file, "parquet")], Path(file).stem, f"data 'parquet:{file}'", asked)


def _read(file: str, kind: str) -> Any:
    where = f"data '{kind}:{file}'"
    pyarrow = from_extra("pyarrow", "tables", where)
    reader = from_extra(f"pyarrow.{kind}", "tables", where)
    if not Path(file).is_file():
        raise DataError(where, "no such file", "check the path")
    try:
        return reader.read_csv(file) if kind == "csv" else reader.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(where, f"it can't be read: {first_line(error)}", f"give a {kind} file") from error


def table_source(parts: Sequence[Any], name: str, where: str, asked: DataRequest) -> DataSource:
    """Arrow tables as data in three parts; everything is in memory.

    One table is cut in three by a seed; of two the second is the test, and validation is cut from the first; three are
    training, validation and test.

    A target of texts or truth values is a class by its place in their order, one of whole numbers as it is; others are
    float32 [N, 1], judged by the squared error. Without labels a column that names itself one is left out.

    Raises:
        ConfigError: no such column, or an impossible split.
        DataError: columns that hold no numbers, or nothing in some row.
    """
    reading, table = asked.reading, _together(parts, where)
    names = list(table.column_names)
    target = reading.target or next((t for t in TARGETS if t in names), names[-1] if asked.labelled else None)
    columns = list(reading.columns) or [n for n in names if n != target]
    missing = [n for n in (*filter(None, [target]), *columns) if n not in names]
    if missing:
        raise ConfigError(where, f"there is no column {', '.join(missing)}", f"use some of {', '.join(names)}")
    inputs = torch.stack([_numbers(table[n], n, where) for n in columns], 1)
    labels, classes, judged = torch.zeros(len(inputs), dtype=torch.int64, device="cpu"), tuple[str, ...](), "no labels"
    if target is not None and asked.labelled:
        labels, classes = _targets(table[target], target, where, reading.loss)
        kind = "a number" if labels.is_floating_point() else f"{len(classes) or int(labels.max()) + 1} classes"
        judged = f"{target} ({kind})"
    loss: Callable[..., Tensor] = nn.MSELoss() if labels.is_floating_point() else cross_entropy
    whole = ArrayDataset(inputs, labels, reading.mean or (0.0,), reading.std or (1.0,))
    kinds = torch.zeros(len(labels), dtype=torch.int64, device="cpu") if labels.is_floating_point() else labels
    train, validation, test = (whole.subset(indices) for indices in _cut(kinds, parts, asked))
    counts = " + ".join(f"{len(part):,}" for part in (train, validation, test))
    told = f"{name}: {counts} rows to train, validate, test; {judged} from {len(columns)} columns"
    without = labels.is_floating_point() or not asked.labelled
    number = 0 if without else len(classes) or int(labels.max()) + 1
    return DataSource(name, train, validation, test, number, loss_fn=loss, classes=classes, told=told)


def _together(parts: Sequence[Any], where: str) -> Any:
    import pyarrow

    try:
        return pyarrow.concat_tables(parts)
    except pyarrow.ArrowException as error:
        raise DataError(where, f"its parts have other columns: {first_line(error)}", "give all the same") from error


def _cut(kinds: Tensor, parts: Sequence[Any], asked: DataRequest) -> Sequence[Tensor]:
    """Rows of training, validation and test."""
    if len(parts) == 1:
        return asked.cut(kinds)
    first, *rest = torch.arange(len(kinds), device="cpu").split([len(part) for part in parts])
    if len(rest) == 2:
        return first, *rest
    stays, held_out = split_indices(kinds[first], asked.validation, asked.seed)
    return stays, held_out, rest[0]


def _numbers(column: Any, name: str, where: str) -> Tensor:
    import pyarrow.types as types

    kind = column.type
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        fix = "write numbers in its place, or leave it out: --load columns=..."
        raise DataError(where, f"column {name!r} holds {kind}, no numbers", fix)
    if column.null_count:
        what = f"column {name!r} holds nothing in {column.null_count} rows"
        raise DataError(where, what, "fill these in, or leave them out")
    return torch.from_numpy(np.asarray(column.to_numpy()).astype(np.float32))


def _targets(column: Any, name: str, where: str, loss: str) -> tuple[Tensor, tuple[str, ...]]:
    """Labels int64 [N] and names of classes, if they are texts; or numbers float32 [N, 1]."""
    import pyarrow.types as types

    kind = column.type
    if types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind):
        if column.null_count:
            raise DataError(where, f"column {name!r} holds nothing in {column.null_count} rows", "fill these in")
        values, places = np.unique(np.asarray(column.to_pylist(), dtype=str), return_inverse=True)
        return torch.from_numpy(places.astype(np.int64)), tuple(map(str, values))
    numbers = _numbers(column, name, where)
    if loss == "mse" or (loss == "auto" and types.is_floating(kind)):
        return numbers[:, None], ()
    labels = numbers.long()
    if not torch.equal(labels.float(), numbers) or int(labels.min()) < 0:
        what = f"column {name!r} holds numbers that are no classes"
        raise DataError(where, what, "number the classes from 0, or say --load loss=mse")
    return labels, ()
