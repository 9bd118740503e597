"""Programs that were made to harm: each ends in one typed error, and nothing of theirs runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

import prunus

PATH = Path(__file__).parents[1] / "benchmarks" / "hostile_programs.py"


def test_every_hostile_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PATH.parent))
    spec = importlib.util.spec_from_file_location("hostile_programs", PATH)
    assert spec is not None
    assert spec.loader is not None
    hostile = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = hostile  # dataclasses look their module up
    spec.loader.exec_module(hostile)
    sound = hostile.sound_artifact(tmp_path / "sound")
    assert (sound / "program.safetensors").exists()
    prunus.load(sound)
    cases = hostile.cases()
    assert len({case.name for case in cases}) == len(cases) > 200
    found = {case.name: hostile.attempt(case, sound, tmp_path)[0] for case in cases}
    assert {name: problem for name, problem in found.items() if problem is not None} == {}
