"""The folder of a run as its report reads it: whatever is there, checked; what is missing is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus.errors import ArtifactError, ConfigError
from prunus.files.atomic import StrPath, real_path
from prunus.files.decoding import Malformed, decode, parse_json
from prunus.files.manifest import MANIFEST
from prunus.formats.artifact import MASKS, PLAN, is_artifact
from prunus.formats.run import ARTIFACT, FEATURES, RECORD, SUMMARY
from prunus.masks.file import LayerMask, read_masks
from prunus.plan.plan import Plan
from prunus.reports.features import Features, read_features
from prunus.reports.reading import checked_summary
from prunus.reports.record import Record, read_record

LARGEST = 64 << 20
"""Bytes of a summary."""


@dataclass(frozen=True)
class RunFiles:
    """What a run left.

    Attributes:
        path: the folder that holds it.
        summary: `summary.json`.
        plan: `plan.json`.
        record: `record.json`; None in folders of releases that wrote none.
        features: activation maps and filters, where some were recorded.
        masks: what is kept inside weights, by layer.
        digests: SHA-256 of the artifact's files, by name.
    """

    path: Path
    summary: Mapping[str, Any]
    plan: Plan
    record: Record | None = None
    features: Features | None = None
    masks: Mapping[str, LayerMask] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


def read_run(run: StrPath) -> RunFiles:
    """Read the folder of a run, or the artifact in it.

    Raises:
        ConfigError: it is neither.
        ArtifactError: a file is damaged.
        PlanError: the plan is damaged.
    """
    folder = real_path(run)
    held = folder if is_artifact(folder) else folder / ARTIFACT
    if not is_artifact(held) or not (held / SUMMARY).is_file():
        fix = "give the folder that compress wrote (its --out), which holds summary.json and artifact/"
        raise ConfigError(f"run {str(run)!r}", "there is no finished run", fix)
    return RunFiles(
        held,
        _summary(held / SUMMARY),
        Plan.load(held / PLAN),
        read_record(held / RECORD),
        read_features(held / FEATURES),
        read_masks(held / MASKS) if (held / MASKS).is_file() else {},
        _digests(held / MANIFEST),
    )


def _summary(path: Path) -> Mapping[str, Any]:
    found = _object(path)
    try:
        return checked_summary(found)
    except Malformed as error:
        raise _damaged(path, str(error)) from error


def _digests(path: Path) -> Mapping[str, str]:
    try:
        found: Mapping[str, str] = decode(Mapping[str, str], _object(path).get("sha256"), "sha256")
    except Malformed as error:
        raise _damaged(path, str(error)) from error
    return found


def _object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise Malformed(f"it has more than {LARGEST:,} bytes")
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(found, dict):
        raise _damaged(path, "it is no object")
    return found


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(str(path), f"damaged: {what}", "copy the folder again, or repeat the run")
