"""Two names change places in one step, where the system can do it."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2
UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV, errno.EPERM)


def exchange(one: Path, other: Path) -> bool:
    """Let two existing paths on one disk change places, with no moment at which either name is free.

    Returns:
        False if the system or the disk cannot; nothing has happened then.

    Raises:
        OSError: what else the system says.
    """
    if sys.platform == "win32":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    a, b = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(a, b, RENAME_SWAP)
    elif hasattr(libc, "renameat2"):
        failed = libc.renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE)
    else:
        return False
    number = ctypes.get_errno()
    if failed and number not in UNABLE:
        raise OSError(number, os.strerror(number), str(other))
    return not failed
