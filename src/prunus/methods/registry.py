"""Methods by name."""

from __future__ import annotations

from collections.abc import Sequence

from prunus.errors import ConfigError
from prunus.methods.base import Method
from prunus.methods.criteria import CRITERIA
from prunus.methods.dirichlet import DirichletPruning
from prunus.methods.rbp import RecursiveBayesianPruning
from prunus.methods.relatives import NOISE_METHODS
from prunus.methods.settings import configure

METHODS: dict[str, type[Method]] = {
    "dirichlet": DirichletPruning,
    "rbp": RecursiveBayesianPruning,
    **NOISE_METHODS,
    **CRITERIA,
}


def resolve(method: Method | str, settings: Sequence[str] = ()) -> Method:
    """A method object from an object or a name.

    Args:
        method: the object, which is returned as it is, or a name.
        settings: NAME=VALUE, as for `configure`; of a name only.

    Raises:
        ConfigError: the name or a setting is not known.
    """
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise ConfigError(f"method {method!r}", "there is none of that name", f"use one of {', '.join(METHODS)}")
    return configure(METHODS[method], settings)
