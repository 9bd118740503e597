"""Data that a callable of the user's makes."""

from __future__ import annotations

from prunus.data.datasets import DataSource
from prunus.data.registry import DATA_SOURCES, DataRequest, data_source
from prunus.errors import ConfigError
from prunus.models.specs import call, resolve


@data_source(
    "",
    form="FILE.py:callable, package.module:callable",
    help="it returns a DataSource; gets `validation` and `seed` if it has such parameters",
)
def made_by_callable(spec: str, asked: DataRequest) -> DataSource:
    """The data that a callable returns.

    Raises:
        ConfigError: no such callable, or one that fails or returns something else.
    """
    source = call(resolve(spec, DATA_SOURCES.forms()), spec, validation=asked.validation, seed=asked.seed)
    if not isinstance(source, DataSource):
        fix = "return a prunus.data.DataSource"
        raise ConfigError(f"data {spec!r}", f"the callable returned {type(source).__name__}", fix)
    return source
