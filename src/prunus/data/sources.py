"""The data that specs name; every kind of spec is registered in a file of this folder.

Whatever the source, the validation split is cut from the training data and the test split is read for nothing but the
final number.
"""

from __future__ import annotations

from torch import nn

from prunus.data.datasets import DataSource
from prunus.data.registry import DATA_SOURCES, DataRequest, Reading, check_read, data_source
from prunus.models.registry import import_all

__all__ = ["DataRequest", "data_source", "load_data"]

import_all("prunus.data")


@DATA_SOURCES.documents
def load_data(
    spec: str,
    *,
    validation: float | int | None = None,
    seed: int = 0,
    model: str | None = None,
    network: nn.Module | None = None,
    labelled: bool = True,
    reading: Reading | None = None,
) -> DataSource:
    """The data that a spec names.

    Args:
        spec: one of

            {kinds}
        validation: fraction or number of training examples held out for validation; None: as `reading` says, a tenth.
        seed: of that choice.
        model: the model's spec or the artifact's folder, whose tokenizer texts are cut by, and as whose own
            configuration says pictures are prepared.
        network: the model itself, which may hold such a configuration (timm's do).
        labelled: False if no label will be looked at, so that there need be none.
        reading: how data are read, as far as the place doesn't say it.

    Raises:
        ConfigError: a spec that names nothing, an impossible split, a setting that these data have no use for, or a
            text without a tokenizer.
        DataError: files that are missing, truncated or damaged.
        MissingDependencyError: the package that holds the data is not installed.

    Example:
        >>> from prunus.data import load_data
        >>> len(load_data("digits", validation=400).train)
        3600
    """
    load, place = DATA_SOURCES.find(spec)
    reading = Reading() if reading is None else reading
    check_read(spec, load, reading)
    held = reading.validation if validation is None else validation
    return load(place, DataRequest(held, seed, model, network, labelled, reading))
