"""The manifest of an artifact: which files belong to it, and their checksums. No other file is ever read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus.errors import ArtifactError
from prunus.files.decoding import Malformed, decode, parse_json

MANIFEST = "manifest.json"
LARGEST = 16 << 20
"""Bytes of a manifest; metrics are what may make it long."""


@dataclass(frozen=True)
class Manifest:
    """What the file says, as far as loading needs it.

    Attributes:
        format: number of the artifact's format.
        model: class of the dense model.
        rewritten: the model is a rewritten graph.
        sha256: file -> checksum, for every file of the artifact but the model card.
        no_program: why there is no program, or None.
        metrics: as they were given to `save`.
    """

    format: int
    model: str
    rewritten: bool
    sha256: Mapping[str, str]
    no_program: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


def read_manifest(folder: Path, formats: Collection[int], needed: Collection[str], known: Collection[str]) -> Manifest:
    """The manifest, after every file that it names was found, with the right checksum.

    Args:
        folder: the artifact.
        formats: numbers of formats that can be read.
        needed: names of files that every artifact has.
        known: names that a manifest may list at all.

    Raises:
        ArtifactError: it is missing, damaged or lists other files, or one of them is missing or damaged.
    """
    path = folder / MANIFEST
    fix = "give the folder that prunus saved"
    try:
        if path.stat().st_size > LARGEST:
            raise Malformed(f"it has more than {LARGEST:,} bytes")
        said = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise Malformed("it is no object")
        if said.get("format") not in formats:
            raise ArtifactError(str(folder), f"unknown format {str(said.get('format'))[:40]}", "install a newer prunus")
        manifest: Manifest = decode(
            Manifest, {k: v for k, v in said.items() if k in Manifest.__dataclass_fields__}, "it"
        )
        _check_names(manifest, needed, known)
    except (OSError, ValueError) as error:
        raise ArtifactError(str(folder), f"its {MANIFEST} is missing or damaged: {error}", fix) from error
    for name, digest in manifest.sha256.items():
        _check_file(folder / name, digest)
    return manifest


def _check_names(manifest: Manifest, needed: Collection[str], known: Collection[str]) -> None:
    names = set(manifest.sha256)
    if missing := sorted(set(needed) - names):
        raise Malformed(f"it has no checksum of {missing[0]}")
    if strange := sorted(names - set(known)):
        raise Malformed(f"it lists {strange[0][:60]!r}, which is no file of an artifact")
    if any(not re.fullmatch(r"[0-9a-f]{64}", digest) for digest in manifest.sha256.values()):
        raise Malformed("a checksum is no SHA-256")


def _check_file(path: Path, digest: str) -> None:
    fix = "copy the whole artifact again"
    if not path.is_file():
        raise ArtifactError(str(path), "the file is missing", fix)
    try:
        with path.open("rb") as file:
            found = hashlib.sha256()
            for block in iter(lambda: file.read(1 << 20), b""):
                found.update(block)
    except OSError as error:
        raise ArtifactError(str(path), f"cannot be read: {error}", fix) from error
    if found.hexdigest() != digest:
        raise ArtifactError(str(path), "the file is truncated or damaged (checksum)", fix)
