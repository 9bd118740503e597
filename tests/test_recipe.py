"""Recipes: what a run writes gives the same run again, bit for bit; what is wrong in one is named before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import prunus
from prunus.cli.app import main
from prunus.errors import ConfigError
from prunus.pipeline.recipe import Recipe
from prunus.pipeline.run import understood

MINE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.1), nn.ReLU(), nn.Linear(12, 3))

def data():
    draw = torch.Generator().manual_seed(0)
    return 2 * ([(torch.randn(16, 6, generator=draw), torch.arange(16) % 3) for _ in range(4)],)

def nothing():
    raise AssertionError("this must not be asked for")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parts(**more: Any) -> dict[str, Any]:
    return {
        "model": "mine.py:net", "data": "mine.py:data", "target": "macs<=50%", "set": {"min_steps": 4, "joint": True},
        "recover": ["epochs=2", "batch_size=16"], "export": "none", "run": {"modes": "eager"}, **more,
    }  # fmt: skip


def test_the_recipe_of_a_run_gives_the_same_weights_again(here: Path) -> None:
    first = prunus.run(parts(out="first", seed=3))
    assert first.directory == Path("first")
    written = Recipe.load_file("first")
    assert written.seed == 3
    assert {"epochs=2.0", "lr=auto", "patience=none"} <= set(written.recover)
    assert {"min_steps=4", "joint=true"} <= set(written.set)
    assert written.prunus == prunus.__version__
    again = prunus.run("first/recipe.yaml", out="again")
    assert again.summary["kept"] == first.summary["kept"]
    weights = [(here / name / "artifact" / "weights.safetensors").read_bytes() for name in ("first", "again")]
    assert weights[0] == weights[1]
    assert Recipe.load_file("again") == written.but(out="again")
    with pytest.raises(SystemExit) as ended:
        main(["compress", "--recipe", "first", "--out", "other", "--seed", "4", "--quiet"])
    assert not ended.value.code
    assert Recipe.load_file("other").seed == 4
    assert (here / "other" / "artifact" / "weights.safetensors").read_bytes() != weights[0]


@pytest.mark.parametrize("more", [{}, {"method": "l1", "set": {}, "repair": "none", "recover": "none"}, {
    "target": {"0": 6}, "allow": ["inexact"], "ignore": "head*", "load": {"workers": 0}, "allocate": {"round_to": 4},
    "labels": "none", "weights": "w.pt",
}])  # fmt: skip
def test_text_and_recipe_say_the_same(more: dict[str, Any]) -> None:
    recipe = Recipe.of(parts(**more))
    assert Recipe.from_text(recipe.to_text()) == recipe


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model: [", "no YAML"),
        ("- model", "holds a list"),
        ("model: a:b", "which data"),
        ("model: a:b\ndata: c\ntraget: 0.5", "write target"),
        ("model: a:b\ndata: c\nseed: many", "no whole number"),
        ("model: a:b\ndata: c\nrecover: 5", "are no settings"),
        ("model: a:b\ndata: {x: 1}", "is no text"),
        ("model: a:b\ndata: c\nallow: 5", "are no names"),
        ("!!python/object/apply:os.system ['true']", "no YAML"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Recipe.from_text(text)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"target": "macs<=half"}, "macs<=half"),
        ({"target": None}, "target"),
        ({"set": {"min_stepz": 4}}, "use min_steps"),
        ({"recover": {"epochz": 4}}, "use epochs"),
        ({"repair": {"exampels": 4}}, "use examples"),
        ({"allocate": {"scope": "all"}}, "scope"),
        ({"allow": "heads"}, "head_dims"),
        ({"load": {"sise": 4}}, "use size"),
        ({"export": "tflite"}, "pt2"),
        ({"labels": "some"}, "--labels"),
        ({"run": {"modes": "fast"}}, "modes"),
        ({"method": "l7"}, "l7"),
        ({"out": "mine.py"}, "mine.py"),
    ],
)
def test_all_is_refused_before_model_and_data_are_read(here: Path, more: dict[str, Any], named: str) -> None:
    asked = {**parts(), "model": "mine.py:nothing", "data": "mine.py:nothing", **more}
    with pytest.raises(prunus.errors.PruneError, match=named):
        prunus.run({name: value for name, value in asked.items() if value is not None})


def test_a_recipe_that_is_understood_reads_nothing(here: Path) -> None:
    order = understood(Recipe.of(parts(model="mine.py:nothing", data="mine.py:nothing", out="new")))
    assert order.pinned().model == "mine.py:nothing"
    assert not (here / "new").exists()
