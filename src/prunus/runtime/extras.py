"""Packages that not everyone needs."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from prunus.errors import MissingDependencyError

EXTRAS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "images": ("pillow",),
    "tables": ("pyarrow",),
    "datasets": ("datasets",),
    "timm": ("timm",),
    "hf": ("transformers",),
    "lightning": ("lightning",),
    "figures": ("matplotlib",),
    "sparse": ("numba",),
    "demo": ("mlxtend",),
}
"""Extra -> the distributions that it brings itself."""


def there(module: str) -> bool:
    """Whether a module could be imported, as far as that is known without its import, which may take seconds."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent that is not there, or a module that is kept from being imported
        return False


def from_extra(module: str, extra: str, where: str, *, otherwise: str = "") -> Any:
    """A module that comes with an extra of this package.

    Args:
        module: its full name.
        extra: of `pip install 'prunus[EXTRA]'`.
        where: what needs it.
        otherwise: what else can be done.

    Raises:
        MissingDependencyError: it can't be imported; names `where` and the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        fix = f"pip install 'prunus[{extra}]'{otherwise}"
        raise MissingDependencyError(where, f"{module} cannot be imported: {error}", fix) from error
    except RuntimeError as error:  # what was compiled for another torch
        fix = "prunus doctor says which versions fit"
        raise MissingDependencyError(where, f"{module} is installed and cannot be imported: {error}", fix) from error
