"""Kinds of specs: one line of help each, known to docstrings, refusals and the command line once registered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prunus.data import load_data
from prunus.data.registry import DATA_SOURCES
from prunus.errors import ConfigError
from prunus.models import load_model
from prunus.models.loaded import MODEL_SOURCES
from prunus.models.registry import SpecRegistry

OUTSIDE = '''
"""A model source, a data source and an exporter of somebody else's, in one file."""
import torch
from torch import nn
from prunus.data import ArrayDataset, DataSource, data_source
from prunus.formats import Exported, exporter
from prunus.models import LoadedModel, model_source

@model_source("width", form="width:N", help="a perceptron of that width")
def made(width):
    return LoadedModel(nn.Sequential(nn.Linear(3, int(width)), nn.ReLU(), nn.Linear(int(width), 2)), None, "perceptron")

@data_source("noise", form="noise", help="random numbers without a meaning")
def noise(place, asked):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(asked.seed))
    part = ArrayDataset(x, torch.arange(40) % 2)
    return asked.in_three_parts("noise", part, part, 2)

@exporter("lines", file="lines.txt", help="the names of its tensors, one a line")
def lines(subject, path):
    path.write_text("\\n".join(subject.model.state_dict()))
    return Exported(path, None, "one line for each tensor")

if __name__ == "__main__":
    from prunus.cli import main
    main()
'''


def test_every_kind_is_told_in_the_docstring_and_in_refusals() -> None:
    for load, registry in ((load_model, MODEL_SOURCES), (load_data, DATA_SOURCES)):
        with pytest.raises(ConfigError) as refused:
            load("unknown")
        for kind in registry.kinds.values():
            assert f"`{kind.form}`: {kind.help}" in (load.__doc__ or "")
            assert kind.form in refused.value.fix
            assert len(kind.help) <= 90
            assert "\n" not in kind.help


def test_a_kind_takes_what_its_form_says_and_a_name_is_taken_once() -> None:
    registry: SpecRegistry = SpecRegistry("plum")
    registry.register("ripe", form="ripe", help="at once")(lambda rest: f"ripe{rest}")
    registry.register("tree", form="tree:NUMBER", help="of that tree")(lambda rest: f"tree {rest}")
    for spec, found in (("ripe", "ripe"), ("tree:7", "tree 7"), ("tree:a:b", "tree a:b")):
        load, rest = registry.find(spec)
        assert load(rest) == found
    for spec in ("tree", "tree:", "ripe:7", "other", ""):
        with pytest.raises(ConfigError, match="use ripe, tree:NUMBER"):
            registry.find(spec)
    with pytest.raises(ConfigError, match="tree:NUMBER has that name"):
        registry.register("tree", form="tree", help="another")


def test_a_source_from_outside_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OUTSIDE)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(path), *arguments], capture_output=True, text=True, check=False,
            env={"COLUMNS": "100", "PYTHONPATH": ":".join(sys.path)},
        )  # fmt: skip

    shown = run("evaluate", "width:4", "--data", "noise")
    assert "test examples" in shown.stdout, shown.stderr
    shown = run("evaluate", "--help")
    assert "width:N" in shown.stdout
    assert "noise" in shown.stdout
    out = tmp_path / "out"
    arguments = ("compress", "width:16", "--data", "noise", "--method", "l1", "--target", "0.5", "--recover", "none")
    shown = run(*arguments, "--export", "lines", "--out", str(out))
    assert shown.returncode == 0, shown.stderr
    assert (out / "lines.txt").read_text().split() == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert "lines" in run("compress", "--help").stdout
    refused = run(*arguments, "--export", "circles", "--out", str(tmp_path / "other"))
    assert refused.returncode == 2
    assert "lines" in refused.stderr
    assert not (tmp_path / "other").exists()
    refused = run("evaluate", "wide:4", "--data", "noise")
    assert refused.returncode == 2
    assert "width:N" in refused.stderr
