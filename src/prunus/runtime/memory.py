"""Memory that is free but still held by the process, given back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys


def give_memory_back() -> None:
    """Collect what refers to itself, and let the C library return what it keeps of freed memory.

    glibc holds on to freed blocks of less than 32 MiB between others that are in use; over the layers of a large model
    they can add up to more than all that is used. Elsewhere than under glibc nothing but the collection is done.
    """
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
