"""`prunus doctor` and what it says: the extras are those of the build, a torchvision of another torch is named."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from prunus.cli.app import main
from prunus.errors import MissingDependencyError
from prunus.runtime import installed
from prunus.runtime.extras import EXTRAS, from_extra

PROJECT = (Path(__file__).parents[1] / "pyproject.toml").read_text()


def distributions(text: str) -> tuple[str, ...]:
    names = [re.split(r"[><=\[]", item)[0] for item in re.findall(r'"([^"]+)"', text)]
    return tuple(name for name in names if name != "prunus")


def test_extras_and_needed_packages_are_those_of_the_build() -> None:
    section = PROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0]
    declared = {
        name: distributions(re.sub(r"prunus\[[^\]]*\]", "prunus", items))
        for name, items in re.findall(r"^(\w+) = \[(.*?)\n?\]$", section, re.MULTILINE | re.DOTALL)
    }
    assert {n: d for n, d in declared.items() if n not in ("bench", "dev", "docs")} == EXTRAS
    needed = PROJECT.split("\ndependencies = [")[1].split("]")[0]
    assert distributions(needed) == installed.NEEDED


def test_doctor_tells_versions_and_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dict(installed.installed())
    monkeypatch.setattr("prunus.cli.doctor.installed", lambda: {**found, "onnxscript": None})
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    assert not ended.value.code
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert told["versions"]["torch"] == importlib.metadata.version("torch")
    assert told["missing"]["onnx"] == ["onnxscript"]
    assert "pip install 'prunus[onnx]'" in " ".join(shown.err.split())


def test_a_torchvision_of_another_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        return "0.99.0" if name == "torchvision" else importlib.metadata.version(name)

    monkeypatch.setattr(installed, "version", version)
    monkeypatch.setattr(installed, "requires", lambda _: ["numpy", "torch==1.2.3", "pillow>=5.3"])
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    assert installed.misfit() is None

    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    said = installed.misfit()
    assert said is not None
    assert all(part in said for part in ("0.99.0", "torch==1.2.3", torch.__version__, "nms"))
    with pytest.raises(MissingDependencyError, match="prunus doctor"):
        from_extra("torchvision", "timm", "model 'timm:resnet18'")


def test_features_of_the_processor_are_words(monkeypatch: pytest.MonkeyPatch) -> None:
    found = installed.processor_features()
    assert all(re.fullmatch(r"[\w.:-]+", word) for word in found)
    monkeypatch.setattr(installed, "processor_features", lambda: frozenset({"avx512_vnni"}))
    assert "are fast" in installed.machine()["8-bit ONNX"]
    monkeypatch.setattr(installed, "processor_features", lambda: frozenset({"sse2"}))
    assert "no faster" in installed.machine()["8-bit ONNX"]
