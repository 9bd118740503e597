"""Files and folders: old or new at any time, nothing of anybody else's gone, refusals that name path and cure."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prunus.files.atomic
from prunus.errors import ArtifactError, ConfigError, PruneError
from prunus.files.atomic import check_writable, replacing, staging, write_bytes, write_folder, write_text
from prunus.files.steady import steady


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_neighbours_with_the_names_of_backups_stay(tmp_path: Path) -> None:
    for name in ("p.json.part", "p.json.old", ".p.json.tmp", ".prunus-mine"):
        (tmp_path / name).write_text("mine")
    for name in ("arr.old", "arr.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    before = names(tmp_path)
    for number in range(2):
        write_text(tmp_path / "p.json", f"{number}")
        write_folder(tmp_path / "arr", {"a": b"%d" % number})
    assert names(tmp_path) == sorted([*before, "p.json", "arr"])
    assert (tmp_path / "arr.old" / "thesis.txt").read_text() == (tmp_path / "p.json.part").read_text() == "mine"
    assert (tmp_path / "p.json").read_text() == (tmp_path / "arr" / "a").read_text() == "1"


def test_links_stay_and_what_they_lead_to_is_replaced(tmp_path: Path) -> None:
    real = tmp_path / "real"
    write_folder(real, {"a": b"old", "b": b"old"})
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "file").symlink_to("elsewhere.txt")
    write_folder(tmp_path / "link", {"a": b"new"})
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "link").is_symlink()
    assert names(real) == ["a"]
    assert (real / "a").read_bytes() == b"new"
    assert (tmp_path / "file").is_symlink()
    assert (tmp_path / "elsewhere.txt").read_text() == "new"


def test_the_current_folder_is_filled_and_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(".", {"a": b"1", "manifest.json": b"2"})
    assert names(tmp_path) == ["a", "manifest.json"]
    with pytest.raises(ArtifactError, match="current"):
        write_folder(".", {"a": b"3"})
    assert (tmp_path / "a").read_bytes() == b"1"


def long(folder: Path) -> Path:
    return folder / ("x" * 300)


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file" / "deep" / "x"


def a_folder(folder: Path) -> Path:
    (folder / "x" / "y").mkdir(parents=True)
    return folder / "x"


def a_file(folder: Path) -> Path:
    (folder / "x").write_text("mine")
    return folder / "x"


def a_ring(folder: Path) -> Path:
    (folder / "x").symlink_to("x")
    return folder / "x" / "y"


@pytest.mark.parametrize(
    ("write", "place"),
    [
        (write, place)
        for write in (lambda p: write_text(p, "new"), lambda p: write_folder(p, {"a": b"new"}), check_writable)
        for place in (long, below_a_file, a_ring, lambda f: str(f / "a\0b"), lambda f: "", lambda f: 3)
    ]
    + [(lambda p: write_text(p, "new"), a_folder), (lambda p: write_folder(p, {"a": b"new"}), a_file)],
)
def test_what_the_system_refuses_is_typed(
    tmp_path: Path, write: Callable[[Any], Any], place: Callable[[Path], Any]
) -> None:
    path = place(tmp_path)
    before = names(tmp_path)
    with pytest.raises((ArtifactError, ConfigError)):
        write(path)
    assert names(tmp_path) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync", "open", "mkdir", "rename"])
def test_a_disk_that_refuses_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    write_folder(tmp_path / "arr", {"a": b"old"})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(prunus.files.atomic.os, call, refuse)
        if call == "mkdir":  # Python 3.10's pathlib holds the system's own
            patch.setattr(Path, call, refuse)
        with pytest.raises(ArtifactError, match=os.strerror(number)):
            write_folder(tmp_path / "arr", {"a": b"new"})
    assert (tmp_path / "arr" / "a").read_bytes() == b"old"
    write_folder(tmp_path / "arr", {"a": b"new"})
    assert names(tmp_path) == ["arr"]
    assert (tmp_path / "arr" / "a").read_bytes() == b"new"


def test_an_error_while_a_folder_is_filled_leaves_the_old(tmp_path: Path) -> None:
    write_folder(tmp_path / "arr", {"a": b"old"})

    def half() -> None:
        with replacing(tmp_path / "arr") as temporary:
            (temporary / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert names(tmp_path) == ["arr"]
    assert (tmp_path / "arr" / "a").read_bytes() == b"old"


CRASH = """
import os, sys
from pathlib import Path
from prunus.files.atomic import staging
with staging(Path(sys.argv[1])) as temporary:
    temporary.mkdir()
    (temporary / "half").write_text("half")
    print("staged", flush=True)
    sys.stdin.read()
    os._exit(9)
"""


def test_what_a_crashed_writer_left_is_cleaned_and_a_living_one_is_not_disturbed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CRASH, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"staged\n"
        (left,) = names(tmp_path)
        write_text(tmp_path / "p.json", "1")
        assert names(tmp_path) == [left, "p.json"]
        writer.communicate(b"")
    write_text(tmp_path / "p.json", "2")
    assert names(tmp_path) == ["p.json"]


@pytest.mark.parametrize("exchanging", [True, False])
def test_writers_of_one_folder_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanging: bool
) -> None:
    if not exchanging:
        monkeypatch.setattr(prunus.files.atomic, "exchange", lambda *_: False)
    failed: list[BaseException] = []

    def save(mark: bytes) -> None:
        try:
            for _ in range(30):
                write_folder(tmp_path / "arr", dict.fromkeys("abc", mark))
                write_bytes(tmp_path / "plan.json", mark)
        except PruneError as error:
            failed.append(error)

    threads = [threading.Thread(target=save, args=(mark,)) for mark in (b"1", b"2", b"4")]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    assert failed == []
    assert len({(tmp_path / "arr" / n).read_bytes() for n in "abc"}) == 1
    write_folder(tmp_path / "arr", {"a": b"3"})
    assert names(tmp_path) == ["arr", "plan.json"]


def test_without_an_exchange_a_crash_between_two_renames_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "arr", {"a": b"old"})
    aside = tmp_path / ".prunus-aside-0123456789abcdef"
    aside.mkdir()
    (tmp_path / "arr").rename(aside / "arr")
    with staging(tmp_path):
        assert names(tmp_path) == ["arr"]
    assert (tmp_path / "arr" / "a").read_bytes() == b"old"


def test_looking_whether_a_folder_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "deep" / "er")
    check_writable(tmp_path)
    assert names(tmp_path) == []


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    times: list[Path] = []

    @steady
    def read(folder: Any) -> set[bytes]:
        first = (folder / "a").read_bytes()
        if len(times) < 2:
            write_folder(folder, {n: b"%d" % len(times) for n in "ab"})
        times.append(folder)
        return {first, (folder / "b").read_bytes()}

    write_folder(tmp_path / "arr", {"a": b"old", "b": b"old"})
    assert read(tmp_path / "arr") == {b"1"}
    assert len(times) == 3
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nowhere")
