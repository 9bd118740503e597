"""Data that a callable of the user's makes."""

from __future__ import annotations

import inspect
from dataclasses import asdict, fields, replace

from prunus.data.datasets import DataSource
from prunus.data.given import FIX, source_of
from prunus.data.registry import DATA_SOURCES, DataRequest, Reading, data_source
from prunus.errors import ConfigError
from prunus.models.specs import call, resolve


@data_source(
    "",
    form="FILE.py:callable, package.module:callable",
    help="it returns (train, validation, test) or a DataSource; gets what it has parameters for",
    reads=tuple(f.name for f in fields(Reading)),
)
def made_by_callable(spec: str, asked: DataRequest) -> DataSource:
    """The data that a callable returns.

    Raises:
        ConfigError: no such callable, or one that fails or returns something else.
    """
    target = resolve(spec, DATA_SOURCES.forms())
    known = {*inspect.signature(target).parameters, "workers"} if callable(target) else set()
    for name in asked.reading.said:
        if callable(target) and name not in known:
            what = f"the callable has no parameter {name!r}"
            raise ConfigError(f"--load {name}=...", what, f"leave it out, or give {spec} such a parameter")
    offered = {**asdict(asked.reading), "validation": asked.validation, "seed": asked.seed}
    made = call(target, spec, **offered)
    try:
        source = source_of(made, asked.network, spec.rpartition(":")[2])
    except ConfigError as error:
        raise ConfigError(
            f"data {spec!r}", f"the callable returned {type(made).__name__}: {error.what}", FIX
        ) from error
    workers = asked.reading.workers
    return source if workers is None else replace(source, workers=workers)
