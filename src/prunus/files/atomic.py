"""Files and folders that are whole at any time, old or new: on a full disk, after a crash, beside others.

Bytes are made in memory, written under a random name in the folder they belong to, brought to the disk and renamed. A
folder takes the place of another in one step. Nothing is removed but what stands under such a name of a process that
no longer lives: every writer holds a shared lock on the folder, and who finds none cleans up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from prunus.errors import ArtifactError, ConfigError, PruneError
from prunus.files.exchange import exchange

try:
    import fcntl
except ImportError:  # no locks on this system: then nothing that others might be writing is cleaned
    fcntl = None  # type: ignore[assignment]

StrPath = str | os.PathLike[str]

TEMPORARY = re.compile(r"\.prunus-[0-9a-f]{16}")
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
ASIDE = re.compile(r"\.prunus-aside-[0-9a-f]{16}")
BLOCK = 1 << 26
ELSEWHERE = "choose another folder"
CURES = {
    errno.ENOSPC: f"free space on the disk, or {ELSEWHERE}",
    errno.EDQUOT: f"free space in the quota, or {ELSEWHERE}",
    errno.EFBIG: f"raise the limit on the size of files, or {ELSEWHERE}",
    errno.EROFS: f"the disk is read-only: {ELSEWHERE}",
    errno.EACCES: f"get the permission to write there, or {ELSEWHERE}",
    errno.EPERM: f"get the permission to write there, or {ELSEWHERE}",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another place",
    errno.EEXIST: "a file stands where a folder is needed: choose another place",
    errno.EISDIR: "a folder stands where the file belongs: choose another name",
    errno.EBUSY: "it is in use as a whole (a mount point, say): name a folder inside it",
}


@contextlib.contextmanager
def refusing(path: StrPath, kind: type[PruneError] = ArtifactError) -> Iterator[None]:
    """Turn what the system says about writing a path into one typed error that names the path and the cure."""
    try:
        yield
    except OSError as error:
        cure = CURES.get(error.errno or 0, f"look after the disk, or {ELSEWHERE}")
        raise kind(str(path), f"cannot be written: {error.strerror or error}", cure) from error


def real_path(path: StrPath) -> Path:
    """The absolute path with links followed, so that what they lead to is replaced and they stay.

    Raises:
        ConfigError: it is no path, or an empty one.
    """
    try:
        text = os.fsdecode(path)
        unknown = b"\0" in os.fsencode(text)
    except TypeError as error:
        raise ConfigError(f"path {path!r}", f"a {type(path).__name__} is no path", "give a str or a Path") from error
    except UnicodeError:
        unknown = True
    if unknown or not text:
        raise ConfigError(f"path {text!r}", "no file can have that name", "choose another name")
    with refusing(text):
        return Path(os.path.realpath(text))


def write_bytes(path: StrPath, data: bytes, kind: type[PruneError] = ArtifactError) -> Path:
    """Write a file, in a folder that is made if need be; an existing file stays until the new one is whole on the disk.

    Raises:
        PruneError: of the given kind, if the system refuses; nothing has changed then.
    """
    target = real_path(path)
    with refusing(target, kind):
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging(target.parent) as temporary:
            write_new(temporary, data)
            if target.is_file():
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
            sync_folder(target.parent)
    return Path(path)


def write_text(path: StrPath, text: str, kind: type[PruneError] = ArtifactError) -> Path:
    """Write a file in UTF-8; see `write_bytes`."""
    return write_bytes(path, text.encode(), kind)


def write_folder(directory: StrPath, files: Mapping[str, bytes]) -> Path:
    """Write a folder whose files appear together: an existing one stays until the new one is whole on the disk.

    Args:
        directory: the folder; whether an existing one may be replaced is for the caller to know.
        files: contents by name.

    Raises:
        ArtifactError: the system refuses; nothing has changed then.
    """
    with replacing(directory) as temporary:
        for name, data in files.items():
            write_new(temporary / name, data)
    return Path(directory)


@contextlib.contextmanager
def replacing(directory: StrPath) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `directory` at the end unless an error ends the filling.

    Raises:
        ArtifactError: the system refuses; nothing has changed then.
    """
    target = real_path(directory)
    with refusing(target):
        check_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging(target.parent) as temporary:
            temporary.mkdir()
            yield temporary
            with contextlib.suppress(FileNotFoundError):  # none is there, or another writer takes it away
                if target.is_dir():
                    shutil.copymode(target, temporary)
            sync_tree(temporary)
            _put(temporary, target)
            sync_folder(target.parent)


def check_free(directory: StrPath, overwrite: bool) -> Path:
    """A folder that is to be written, and that is new, empty, or may be replaced; nothing is written.

    Raises:
        ArtifactError: there are files in it and `overwrite` is false, or it can't be replaced as a whole.
    """
    target = real_path(directory)
    with refusing(target):
        if target.exists() and any(target.iterdir()) and not overwrite:
            raise ArtifactError(str(target), "the folder exists and is not empty", "choose another folder")
        check_replaceable(target)
    return target


def check_replaceable(target: Path) -> None:
    """Raise ArtifactError for a folder with files in it that can't be replaced as a whole."""
    if _pinned(target) and any(target.iterdir()):
        what = "a folder that is in use as the current one, or as a mount point, can't be replaced as a whole"
        raise ArtifactError(str(target), what, "change to another folder, or name a folder inside it")


def check_writable(folder: StrPath) -> None:
    """Write and remove a file there, and the folders that had to be made for it. Raises ArtifactError if that fails."""
    target = real_path(folder)
    missing = [p for p in (target, *target.parents) if not os.path.lexists(p)]
    with refusing(target):
        try:
            target.mkdir(parents=True, exist_ok=True)
            with staging(target) as temporary:
                write_new(temporary, b"can be written")
        finally:
            for made in missing:
                with contextlib.suppress(OSError):  # somebody has put something in it: it stays
                    made.rmdir()


def check_file(path: StrPath) -> None:
    """`check_writable` of the folder of a file; a folder of its name is refused."""
    target = real_path(path)
    if target.is_dir():
        raise ArtifactError(str(target), "cannot be written: it is a folder", CURES[errno.EISDIR])
    check_writable(target.parent)


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A free name in a folder; what stands under it at the end is removed."""
    with _writing_in(folder):
        temporary = folder / f".prunus-{secrets.token_hex(8)}"
        try:
            yield temporary
        finally:
            remove(temporary)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that isn't there yet, down to the disk."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest[:BLOCK]) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path | int) -> None:
    """Bring a folder's names to the disk, where the system can."""
    try:
        handle = folder if isinstance(folder, int) else os.open(folder, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):  # folders can't be opened on some systems; their names are safe there
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        if not isinstance(folder, int):
            os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a folder of ours; what can't be removed now is left to the next writer."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing_in(folder: Path) -> Iterator[None]:
    """Hold the lock that says: names of ours here are in use. If nobody held it, what crashed writers left goes."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another writer lives, or this disk knows no locks: nothing is cleaned
            pass
        else:
            _clean(folder)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _clean(folder: Path) -> None:
    for name in os.listdir(folder):
        if ASIDE.fullmatch(name):
            _put_back(folder / name)
        elif TEMPORARY.fullmatch(name):
            remove(folder / name)


def _put(temporary: Path, target: Path) -> None:
    """One step from the old folder to the new one; the old one then stands under the temporary name."""
    if _pinned(target):
        check_replaceable(target)
        for entry in sorted(temporary.iterdir(), key=lambda p: p.name == "manifest.json"):  # without it there is none
            os.rename(entry, target / entry.name)
        return
    while True:
        try:
            os.rename(temporary, target)  # nothing or an empty folder is there
            return
        except OSError as error:
            if error.errno not in TAKEN or (os.path.lexists(target) and not target.is_dir()):
                raise
        try:
            if not exchange(temporary, target):
                _step_aside(temporary, target)
            return
        except OSError as error:  # another writer took it away, or put its own there, a moment ago: try again
            if error.errno not in (errno.ENOENT, *TAKEN):
                raise


def _step_aside(temporary: Path, target: Path) -> None:
    """Where no exchange is known, two renames; after a crash between them `_clean` puts the old folder back."""
    aside = target.parent / f".prunus-aside-{secrets.token_hex(8)}"
    aside.mkdir()
    try:
        os.rename(target, aside / target.name)
        os.rename(temporary, target)
    finally:
        _put_back(aside)


def _put_back(aside: Path) -> None:
    for old in aside.iterdir():
        if not os.path.lexists(aside.parent / old.name):
            try:
                os.rename(old, aside.parent / old.name)
            except OSError as error:  # another writer's has come there meanwhile
                if error.errno not in TAKEN:
                    raise
    remove(aside)


def _pinned(target: Path) -> bool:
    """True if the folder is the current one or around it, or a mount point: it would go on existing elsewhere."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return os.path.ismount(target)
    return target == here or target in here.parents or os.path.ismount(target)


def sync_tree(folder: Path) -> None:
    """Bring all files and names of a folder to the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            handle = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(root))
