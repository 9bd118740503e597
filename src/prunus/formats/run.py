"""The folder of a run: one artifact with the whole result in it, and links beside it under the names people look for.

OUT/
  artifact/       the result: replaced in one step, and everything that belongs to it is in it
  plan.json       -> artifact/plan.json
  summary.json    -> artifact/summary.json
  model.onnx, figures, report.html, ...: the same, where the run made them

So no file of one run can stand beside the model of another. What is made after the weights are safe (pictures, timing,
ONNX) is put into the artifact it was made from; if another run has replaced it meanwhile, it is left out.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from prunus.errors import ArtifactError
from prunus.files.atomic import (
    StrPath,
    check_writable,
    real_path,
    refusing,
    remove,
    staging,
    sync_folder,
    sync_tree,
    write_folder,
    write_new,
)
from prunus.files.exchange import exchange
from prunus.files.jsontext import strict_json
from prunus.files.manifest import MANIFEST
from prunus.formats.artifact import CARD, MASKS, WEIGHTS, check_place, description, missing_program
from prunus.formats.program.files import GRAPH, TENSORS
from prunus.masks.file import LayerMask
from prunus.plan.plan import Plan
from prunus.runtime.processes import checked_by_first
from prunus.runtime.progress import Say

ARTIFACT, SUMMARY = "artifact", "summary.json"
NEEDED = ("plan.json", SUMMARY)
RECORD, FEATURES = "record.json", "features.safetensors"
INNER = (MANIFEST, WEIGHTS, MASKS, GRAPH, TENSORS, CARD, RECORD, FEATURES)
"""What is of use in the artifact alone."""


def check_run_folder(out: StrPath) -> None:
    """Look before the hours of work whether the result can be written at their end; nothing is left there.

    Raises:
        ArtifactError: the folder can't be written, or something that no run made stands where the result belongs.
    """
    folder = real_path(out)
    check_writable(folder)
    check_place(folder / ARTIFACT)
    for name in NEEDED:
        if _in_the_way(folder, name):
            what = "it is not what the run there wrote, and would have to be replaced"
            raise ArtifactError(str(folder / name), what, "move it away, or choose another folder")


def prepare_run(
    out: StrPath, model: nn.Module, example_inputs: Any, say: Say, *, follow_branches: bool = False
) -> None:
    """Before the work, on all ranks: `check_run_folder`, and say what the artifact will lack."""
    checked_by_first(lambda: check_run_folder(out))
    missing = missing_program(model, example_inputs, follow_branches=follow_branches)
    if missing is not None:
        say(f"the artifact will have weights and plan, and no program, so that it loads with its factory: {missing}")


@dataclass(frozen=True)
class RunFolder:
    """A result on the disk, to which more can be added.

    Attributes:
        path: the folder.
        manifest: of the artifact; its checksums tell it from what another run may put in its place.
        say: receives a line about what could not be added.
    """

    path: Path
    manifest: Mapping[str, Any] = field(repr=False)
    say: Say = field(default=lambda _: None, repr=False)

    @contextlib.contextmanager
    def adding(self, name: str) -> Iterator[Path]:
        """A free path for a file or folder, which is then added to the result under a name, and shown beside it.

        Raises:
            ArtifactError: it can't be written; the result is as it was.
        """
        with refusing(self.path / name), staging(self.path) as temporary:
            yield temporary
            handle = self._opened()
            if handle is None:
                self.say(f"another run has replaced the result in {self.path} meanwhile: no {name} of this one")
                return
            try:
                if temporary.is_dir():
                    sync_tree(temporary)
                    with contextlib.suppress(FileNotFoundError), staging(self.path) as old:
                        os.rename(name, old, src_dir_fd=handle)
                os.rename(temporary, name, dst_dir_fd=handle)
                sync_folder(handle)
            finally:
                os.close(handle)
        show(self.path, self.say)

    def add(self, name: str, content: bytes | Mapping[str, bytes]) -> None:
        """Add a file, or a folder of files; see `adding`."""
        with self.adding(name) as temporary:
            if isinstance(content, bytes):
                write_new(temporary, content)
            else:
                temporary.mkdir()
                for part, data in content.items():
                    write_new(temporary / part, data)

    def add_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json` anew; see `adding`."""
        self.add(SUMMARY, strict_json(summary, "summary").encode())

    def add_metrics(self, plan: Plan, metrics: Mapping[str, Any], masks: Mapping[str, LayerMask]) -> None:
        """Write the model card and the manifest anew; see `adding`."""
        for name, data in description(self.manifest, plan, metrics, masks).items():
            self.add(name, data)

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        """Work on extras: whatever ends it, Ctrl-C too, the saved result stays, and that is said."""
        try:
            yield
        except BaseException as error:
            self.say(
                f"{type(error).__name__}: the result is saved whole in {self.path}; only extras of it are missing "
                "(results on the test split, timing, pictures, ONNX)"
            )
            raise

    def _opened(self) -> int | None:
        """A handle of the artifact's folder, wherever it may be moved; None if another result is there."""
        try:
            handle = os.open(self.path / ARTIFACT, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            file = os.open(MANIFEST, os.O_RDONLY, dir_fd=handle)
            with open(file, encoding="utf-8") as text:
                same = bool(json.load(text)["sha256"] == self.manifest["sha256"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            same = False
        if same:
            return handle
        os.close(handle)
        return None


def commit(
    out: StrPath, files: Mapping[str, bytes], summary: Mapping[str, Any], say: Say = lambda _: None
) -> RunFolder:
    """Make a result visible as a whole; the one before stays whole until then, and nothing of it remains afterwards.

    Args:
        out: the run's folder.
        files: of the artifact, by name.
        summary: as for `RunFolder.add_summary`.
        say: receives a line about what stands in the way of a link.

    Raises:
        ArtifactError: it can't be written; the result before is as it was.
    """
    folder = real_path(out)
    with refusing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        check_place(folder / ARTIFACT)
        _adopt(folder)
        write_folder(folder / ARTIFACT, {**files, SUMMARY: strict_json(summary, "summary").encode()})
        show(folder, say)
    return RunFolder(folder, json.loads(files[MANIFEST]), say)


def commit_or_rescue(
    out: StrPath, files: Mapping[str, bytes], summary: Mapping[str, Any], say: Say = lambda _: None
) -> RunFolder:
    """`commit`; where that fails after hours of work, the artifact goes to the system's temporary folder.

    Raises:
        ArtifactError: it can't be written; the message names the folder where the artifact is instead.
    """
    try:
        return commit(out, files, summary, say)
    except ArtifactError as error:
        refused = error
    try:
        place = Path(tempfile.mkdtemp(prefix="prunus-rescued-"))
    except OSError:
        raise refused from None
    try:
        write_folder(place / ARTIFACT, files)
    except ArtifactError:
        remove(place)
        raise refused from None
    what = f"{refused.what}; the artifact is saved in {place / ARTIFACT} instead"
    raise ArtifactError(refused.where, what, f"move it from there; {refused.fix}") from refused


def show(folder: Path, say: Say) -> None:
    """Link to what the artifact holds; links to what it doesn't hold go. What is not ours stays, and is named."""
    for name in _shown(folder):
        place, held = folder / name, folder / ARTIFACT / name
        if _is_ours(place):
            if not held.exists():
                place.unlink(missing_ok=True)
        elif _in_the_way(folder, name):
            say(f"{place} is not of this run and stays; its own is {held}")
        elif held.exists() and not _link(place, held) and not os.path.lexists(place):
            _copy(place, held)


def _shown(folder: Path) -> list[str]:
    """What the artifact holds for the eye, and what is linked to."""
    held = [p.name for p in (folder / ARTIFACT).iterdir()] if (folder / ARTIFACT).is_dir() else []
    return sorted({n for n in held if n not in INNER} | {p.name for p in folder.iterdir() if _is_ours(p)})


def _adopt(folder: Path) -> None:
    """Copies of what the artifact holds become links before it changes, or go where the disk has no links."""
    for name in _shown(folder):
        place, held = folder / name, folder / ARTIFACT / name
        copied = os.path.lexists(place) and not _is_ours(place) and held.exists() and _same(place, held)
        if copied and not _link(place, held):
            remove(place)


def _is_ours(place: Path) -> bool:
    return place.is_symlink() and os.readlink(place) == os.path.join(ARTIFACT, place.name)


def _in_the_way(folder: Path, name: str) -> bool:
    """True if something stands there that is neither our link nor the same as what the artifact holds."""
    place, held = folder / name, folder / ARTIFACT / name
    return os.path.lexists(place) and not _is_ours(place) and not (held.exists() and _same(place, held))


def _same(one: Path, other: Path) -> bool:
    if one.is_dir() and other.is_dir():
        names = sorted(p.name for p in one.iterdir())
        return names == sorted(p.name for p in other.iterdir()) and all(_same(one / n, other / n) for n in names)
    if not one.is_file() or not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    return one.read_bytes() == other.read_bytes()


def _link(place: Path, held: Path) -> bool:
    """A link in place of nothing, or of a copy. False where the disk has no links."""
    goal = os.path.join(ARTIFACT, place.name)
    try:
        if not os.path.lexists(place):
            os.symlink(goal, place)
            return True
        with staging(place.parent) as temporary:
            os.symlink(goal, temporary)
            if not place.is_dir():
                os.replace(temporary, place)
            elif not exchange(temporary, place):
                remove(place)
                os.replace(temporary, place)
        return True
    except FileExistsError:  # another run of ours was faster
        return True
    except NotImplementedError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False


def _copy(place: Path, held: Path) -> None:
    with staging(place.parent) as temporary:
        (shutil.copytree if held.is_dir() else shutil.copy2)(held, temporary)
        os.replace(temporary, place)
