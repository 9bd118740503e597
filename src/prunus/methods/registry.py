"""From what a caller says to a method: a name, a class in a file or a module, an object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

from prunus.errors import ConfigError
from prunus.methods.base import METHODS, Method
from prunus.methods.settings import configure, values_of
from prunus.models import specs

__all__ = ["FORMS", "METHODS", "method_names", "resolve"]

GROUP = "prunus.methods"
"""Entry points under which installed packages name their methods."""
FORMS = "a name, FILE.py:Class or package.module:Class"


def resolve(method: Method | type[Method] | str, settings: Sequence[str] = ()) -> Method:
    """A method from what a caller says.

    Args:
        method: an object; a class; or a text: a name that a class of this package, of an
            imported module or of an installed package (entry points `prunus.methods`) has, or `FILE.py:Class` or
            `package.module:Class`. What stands after the colon may also be an object, or make one without arguments.
        settings: NAME=VALUE, as for `configure`.

    Raises:
        ConfigError: the name or a setting is not known, or what a text names is no method.

    Example:
        >>> resolve("rbp", ["beta=10"]).beta
        10.0
        >>> resolve("prunus.methods:DirichletPruning.as_released").scale
        'none'
    """
    if isinstance(method, str):
        found = specs.resolve(method, FORMS) if ":" in method else _named(method)
        return _configured(found, f"method {method!r}", method, settings)
    return _configured(method, f"method {method!r}", "", settings)


def method_names() -> list[str]:
    """Every name that `resolve` takes, in the order of the alphabet."""
    return sorted({*METHODS, *entry_points(group=GROUP).names})


def _configured(found: Any, where: str, spec: str, settings: Sequence[str]) -> Method:
    if isinstance(found, type) and issubclass(found, Method):
        missing = sorted(found.__abstractmethods__)
        if missing:
            raise ConfigError(where, f"it does not define {', '.join(missing)}", "name a method that is whole")
        return configure(found, settings)
    if spec and callable(found) and not isinstance(found, type):
        found = specs.call(found, spec)
    if isinstance(found, Method):
        return replace(found, **values_of(type(found), settings)) if settings else found
    kind = found.__name__ if isinstance(found, type) else f"a {type(found).__name__}"
    raise ConfigError(where, f"{kind} is no method", f"give a subclass of prunus.methods.Method: {FORMS}")


def _named(name: str) -> Any:
    """The class of a name; installed packages are asked where no imported one has it."""
    if name in METHODS:
        return METHODS[name]
    for entry in entry_points(group=GROUP, name=name):
        try:
            return entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else entry.value
            what = f"loading {entry.value} of the installed package {package} failed: {type(error).__name__}: {error}"
            raise ConfigError(f"method {name!r}", what, "mend or uninstall the package") from error
    fix = f"use one of {', '.join(method_names())}; or FILE.py:Class or package.module:Class"
    raise ConfigError(f"method {name!r}", "there is none of that name", fix)
