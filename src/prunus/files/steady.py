"""Reading a folder that another process may replace meanwhile."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prunus.errors import ArtifactError

P = ParamSpec("P")
R = TypeVar("R")

ATTEMPTS = 100


def steady(read: Callable[P, R]) -> Callable[P, R]:
    """Let a function that reads a folder, its first argument, see one state of it: it reads again where others wrote.

    Raises:
        ArtifactError: that happened time after time.
    """

    @functools.wraps(read)
    def reading(*args: P.args, **kwargs: P.kwargs) -> R:
        directory = args[0] if args else kwargs.get("directory")
        for _ in range(ATTEMPTS):
            before = _state(directory)
            try:
                found = read(*args, **kwargs)
            except Exception:
                if _state(directory) == before:
                    raise
            else:
                if _state(directory) == before:
                    return found
        what = "another process replaced it again and again while it was read"
        raise ArtifactError(str(directory), what, "read it when that has ended")

    return reading


def _state(directory: Any) -> tuple[int, int, int] | None:
    try:
        found = os.stat(directory)
    except (OSError, ValueError, TypeError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
