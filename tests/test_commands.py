"""Every block of code in the documents says what it is; commands that they show are real, and run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main

from documents import DOCUMENTS, ROOT, Block, blocks
from prunus.cli.app import application, main
from prunus.methods import METHODS, DirichletPruning

SHELL = [block for document in DOCUMENTS for block in blocks(document, "shell")]
OTHERS = {"git", "pip", "torchrun", ".venv/bin/python", ".venv/bin/pre-commit"}
"""Programs of others, whose options are theirs to check."""


def prunus_commands(some: list[Block]) -> list[str]:
    """The commands of ours, each once, in the order of the documents."""
    every = [line for block in some for line in block.commands]
    return list(dict.fromkeys(line for line in every if line.startswith("prunus ")))


def words(command: str) -> list[str]:
    """What stands behind the program's name, without what a shell takes for itself."""
    return shlex.split(command.split(" > ")[0])[1:]


def test_every_block_says_what_it_is() -> None:
    wrong = [
        (b.document, b.line, b.kind) for d in DOCUMENTS for b in blocks(d) if b.kind not in ("python", "shell", "text")
    ]
    assert not wrong
    for document in DOCUMENTS:
        assert (ROOT / document).read_text().count("\n```") == 2 * len(blocks(document)), document


@pytest.mark.parametrize("command", prunus_commands(SHELL))
def test_arguments_are_known(command: str) -> None:
    name, *arguments = words(command)
    group = typer.main.get_command(application(name))
    group.commands[name].make_context(name, arguments)  # refuses options, values and arguments that it doesn't know


def test_other_programs_get_what_there_is() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for command in (part for b in SHELL for line in b.commands for part in line.split(" && ")):
        program, *arguments = shlex.split(command)
        if program == "make":
            assert set(arguments) <= set(targets), command
        elif program == "python":
            assert arguments[0] == "-m" or (ROOT / arguments[0]).exists(), command
        elif program == "pip":
            asked = re.findall(r"\[([\w,]+)\]", command)
            assert {e for some in asked for e in some.split(",")} <= extras, command
        else:
            assert program in {"prunus", "cd", *OTHERS}, command


@dataclass(frozen=True)
class Short(DirichletPruning):
    """The default method, learning for a moment."""

    min_steps: int = 4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the documents take it: a model file (the one that they show), its weights, pictures in folders."""
    image = pytest.importorskip("PIL.Image")
    shown = next(b.text for b in blocks("docs/getting-started.md", "python") if b.text.startswith("# mymodel.py"))
    (tmp_path / "mymodel.py").write_text(shown)
    made: dict = {}
    exec(shown, made)
    torch.manual_seed(0)
    torch.save(made["build"]().state_dict(), tmp_path / "trained.pt")
    drawn = np.random.default_rng(0)
    for number in range(12):
        place = tmp_path / "DIR" / f"class{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        image.fromarray(drawn.integers(0, 255, (8, 8, 3)).astype(np.uint8)).save(place / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(METHODS, "dirichlet", Short)
    return tmp_path


@pytest.mark.usefixtures("no_clock")
def test_commands_run_in_the_order_in_which_they_stand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = prunus_commands([b for b in SHELL if not b.reason])
    for command in run:
        with pytest.raises(SystemExit) as end:
            main(words(command))
        said = capsys.readouterr()
        assert end.value.code in (0, None), f"{command}\n{said.err}"
    assert (folder / "runs/small/report.html").exists()
