"""The data that specs name; every kind of spec is registered in a file of this folder.

Whatever the source, the validation split is cut from the training data and the test split is read for nothing but the
final number.
"""

from __future__ import annotations

from prunus.data.datasets import DataSource
from prunus.data.registry import DATA_SOURCES, DataRequest, data_source
from prunus.models.registry import import_all

__all__ = ["DataRequest", "data_source", "load_data"]

import_all("prunus.data")


@DATA_SOURCES.documents
def load_data(spec: str, *, validation: float | int = 0.1, seed: int = 0, model: str | None = None) -> DataSource:
    """The data that a spec names.

    Args:
        spec: one of

            {kinds}
        validation: fraction or number of training examples held out for validation.
        seed: of that choice.
        model: the model's spec or the artifact's folder, whose tokenizer texts are cut by.

    Raises:
        ConfigError: a spec that names nothing, an impossible split, or a text without a tokenizer.
        DataError: files that are missing, truncated or damaged.
        MissingDependencyError: the package that holds the data is not installed.

    Example:
        >>> from prunus.data import load_data
        >>> len(load_data("digits", validation=400).train)
        3600
    """
    load, place = DATA_SOURCES.find(spec)
    return load(place, DataRequest(validation, seed, model))
