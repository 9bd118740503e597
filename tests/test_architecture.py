"""Rooms import one way, files stay small and say what they are; and the test of it finds what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import prunus
from architecture import RANK, cycles, disorder, sources, undocumented, wrong_arrows

ROOT = Path(prunus.__file__).parent


def test_imports_go_one_way() -> None:
    assert list(wrong_arrows(sources(ROOT))) == []


def test_there_is_no_cycle() -> None:
    assert list(cycles(sources(ROOT))) == []


def test_files_are_small_and_named_for_what_they_do() -> None:
    assert list(disorder(ROOT)) == []


def test_every_public_definition_is_documented() -> None:
    assert list(undocumented(sources(ROOT))) == []


def test_the_order_names_rooms_that_are_there() -> None:
    assert set(RANK) == {p.stem for p in ROOT.iterdir() if p.suffix in ("", ".py") and p.stem not in FOREIGN}


FOREIGN = {"__init__", "__pycache__"}
WRONG = {
    "plan/cost.py": ("from prunus.learning.fit import fit", "plan.cost imports learning.fit"),
    "graph/labels.py": ("from prunus.posteriors import base", "knows no probability"),
    "methods/l7.py": ('"""L7."""\nfrom prunus.graph.trace import trace', "methods walk no graph"),
    "surgery/cut.py": ("from prunus.plan.budget import Budget", "surgery decides nothing"),
    "errors.py": ("import prunus.plan.plan", "errors imports plan.plan"),
    "data/losses.py": ("def f():\n    from prunus.gates.gate import attach", "which stands no lower"),
    "runtime/entry.py": ("from . import modes", "a relative import"),
    "attic/box.py": ('"""Things."""', "its room has no place"),
    "graph/groups.py": ("from prunus.graph.trace import trace", "->"),
    "runtime/utils.py": ('"""Things."""', "a name that says nothing"),
    "plan/face.py": ("x = 1", "no word of what it is"),
    "plan/__init__.py": ("def f():\n    return 1", "only names what is inside"),
    "plan/long.py": ('"""Long."""' + "\n" * 400, "more than 400 lines"),
    "fifth.py": ('"""One more."""', "modules in the root"),
    "plan/rounding.py": ("def public():\n    return 1", "public has no docstring"),
}


@pytest.mark.parametrize("where", WRONG)
def test_what_is_written_in_wrongly_is_found(where: str, tmp_path: Path) -> None:
    root = tmp_path / "prunus"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("__pycache__"))
    if where == "fifth.py":
        for name in ("sixth", "seventh", "eighth"):
            (root / f"{name}.py").write_text('"""One more."""\n')
    line, said = WRONG[where]
    (root / where).parent.mkdir(exist_ok=True)
    with (root / where).open("a") as file:
        file.write(f"{line}\n")
    modules = sources(root)
    found = [*wrong_arrows(modules), *cycles(modules), *disorder(root), *undocumented(modules)]
    assert any(said in f for f in found), found
