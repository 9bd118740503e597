"""JSON as the standard has it: no NaN, no infinity, plain numbers only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from prunus.errors import ConfigError


def strict_json(value: Any, where: str) -> str:
    """Indented JSON text. What is no number (NaN, infinity) becomes null; tensors and arrays become their numbers.

    Args:
        value: mappings, sequences, texts, numbers, tensors.
        where: what the value is, for the refusal.

    Raises:
        ConfigError: it holds something else.
    """
    return json.dumps(_plain(value, where), indent=2, allow_nan=False)


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, where) for v in value]
    if hasattr(value, "tolist"):  # tensors, numpy's arrays and numbers
        return _plain(value.tolist(), where)
    raise ConfigError(where, f"a {type(value).__name__} has no place in JSON", "give texts and numbers")
