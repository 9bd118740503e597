"""An artifact's manifest names its files and nothing else; its card shows what comes from outside as plain text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus.errors import ArtifactError
from prunus.files.manifest import MANIFEST
from prunus.formats.card import model_card


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3)), torch.randn(2, 4)
    result = prunus.prune(model, x, method="l1", target=0.5)
    folder = prunus.save(tmp_path_factory.mktemp("a") / "whole", result.model, result.plan, example_inputs=x)
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def make(folder: Path, files: dict[str, bytes], change: Callable[[dict[str, Any]], Any]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest = json.loads(files[MANIFEST])
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["sha256"].clear(), "no checksum of"),
        (lambda m: m["sha256"].pop("weights.safetensors"), "no checksum of weights"),
        (lambda m: m["sha256"].update({"../../etc/passwd": "0" * 64}), "no file of an artifact"),
        (lambda m: m["sha256"].update({"/etc/passwd": "0" * 64}), "no file of an artifact"),
        (lambda m: m["sha256"].update({"plan.json": "abc"}), "no SHA-256"),
        (lambda m: m["sha256"].update({"plan.json": 5}), "where str belongs"),
        (lambda m: m["sha256"].update({"plan.json": "0" * 64}), "checksum"),
        (lambda m: m.update(sha256="x"), "where an object belongs"),
        (lambda m: m.update(sha256=None), "where an object belongs"),
        (lambda m: m.update(rewritten=0), "where bool belongs"),
        (lambda m: m.update(format=99), "unknown format"),
        (lambda m: m.update(format=None), "unknown format"),
        (lambda m: m.pop("model"), "no 'model'"),
    ],
)
def test_a_manifest_that_says_else_is_refused(
    change: Callable[[dict[str, Any]], Any], says: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    folder = make(tmp_path / "artifact", whole, change)
    for call in (prunus.load, prunus.load_masks):
        with pytest.raises(ArtifactError, match=says):
            call(folder)


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff\xfe", b"[" * 200_000, b'{"format": NaN}'])
def test_a_manifest_that_is_no_json_object_is_refused(text: bytes, whole: dict[str, bytes], tmp_path: Path) -> None:
    folder = make(tmp_path / "artifact", whole, lambda _: None)
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(ArtifactError, match=MANIFEST):
        prunus.load(folder)


def test_right_checksums_are_asked_of_every_file(whole: dict[str, bytes], tmp_path: Path) -> None:
    folder = make(tmp_path / "artifact", whole, lambda _: None)
    prunus.load(folder)
    for name in json.loads(whole[MANIFEST])["sha256"]:
        content = bytearray(whole[name])
        content[-1] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(ArtifactError, match="checksum"):
            prunus.load(folder)
        (folder / name).write_bytes(whole[name])
    assert hashlib.sha256(whole["plan.json"]).hexdigest() == json.loads(whole[MANIFEST])["sha256"]["plan.json"]


def test_a_card_formats_nothing_that_comes_from_outside(whole: dict[str, bytes]) -> None:
    data = json.loads(whole["plan.json"]) | {"model": "Net\n---\n# <script>x</script>", "asked": "``` | [a](b)"}
    data["notes"] = ["```\n# heading"]
    plan = prunus.Plan.from_json(json.dumps(data))
    card = model_card(plan, {"<b>|acc": "1\n# 2"}, {})
    assert "<script>" not in card
    assert "<b>" not in card
    lines = card.splitlines()
    assert [line for line in lines if line.startswith("#")] == [lines[0]]
    assert not any(line.startswith(("---", "```")) for line in lines)
    assert r"&lt;b&gt;\|acc" in card
