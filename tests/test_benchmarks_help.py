"""Every benchmark has a `main`, reads its command line at once, and can be smoked (`make smoke` runs them)."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(p for p in FOLDER.glob("*.py") if '__name__ == "__main__"' in p.read_text() and p.stem != "smoke")


class CommandLineRead(Exception):
    """Carries the parser."""


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts can import each other, and stop where they read their options."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        raise CommandLineRead(parser)

    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    monkeypatch.syspath_prepend(str(FOLDER))
    import options

    monkeypatch.setattr(options.Parser, "parse_args", stop)


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_it_has_help_and_a_smoke_run(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(f"benchmark_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    with pytest.raises(CommandLineRead) as stopped:
        module.main()
    parser = stopped.value.args[0]
    assert "--smoke" in parser.format_help()
    known = {action.dest for action in parser._actions}
    assert set(parser.small) <= known, "a small value of an option that there is not"
    required = {action.dest for action in parser._actions if action.required}
    assert required <= set(parser.small), "a smoke run needs no options"


def test_small_values_give_way_to_given_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import options
    import record

    monkeypatch.setattr(options, "_smoking", [])
    parser = options.Parser("what", steps=1, epochs=2)
    parser.add_data("data")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert vars(parser.parse_args(["--data", "x", "--steps", "9"])) == {
        "smoke": False, "data": "x", "steps": 9, "epochs": 20,
    }  # fmt: skip
    assert record.results() == record.RESULTS
    assert vars(parser.parse_args(["--smoke", "--epochs", "3"])) == {
        "smoke": True, "data": None, "steps": 1, "epochs": 3,
    }  # fmt: skip
    assert record.results() == options.scratch() != record.RESULTS
    path = record.write("analysis_cost", {})
    assert path.parent == options.scratch()
