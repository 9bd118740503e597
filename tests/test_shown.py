"""Results show themselves: one line as repr, the whole text when printed, the same text escaped in a notebook."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import prunus
from prunus.data import ArrayDataset, DataSource
from prunus.runtime.shown import Shown

X = torch.randn(2, 6)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


@pytest.fixture(scope="module")
def shown() -> dict[str, Shown]:
    result = prunus.prune(net(), X, method="l1", target="macs<=50%")
    comparison = prunus.benchmark(net(), result.model, X, modes=("eager",), repeats=2)
    return {"graph": result.graph, "plan": result.plan, "result": result, "comparison": comparison}


@pytest.mark.parametrize("name", ["graph", "plan", "result", "comparison"])
def test_a_result_is_one_line_and_prints_as_its_explanation(shown: dict[str, Shown], name: str) -> None:
    result = shown[name]
    assert len(repr(result)) < 200
    assert "\n" not in repr(result)
    assert str(result) == result.explain()
    text = result._repr_html_()
    assert html.unescape(re.sub(r"<[^>]+>", "", text)) == repr(result)[1:-1] + result.explain()
    assert "->" not in text  # escaped


def test_lines_tell_the_numbers_of_the_objects(shown: dict[str, Shown]) -> None:
    result = shown["result"]
    assert isinstance(result, prunus.Result)
    plan = result.plan
    kept = sum(len(g.kept) for g in plan.groups)
    assert f"{kept} of 12 units, {plan.before.macs:,} -> {plan.after.macs:,} MACs" in repr(plan)
    assert repr(result).startswith(repr(plan).replace("Plan", "Result")[:-1])
    assert f"{result.verification.max_error:.1e}" in str(result)
    assert repr(result.findings) == "<Scores: l1, 12 units in 1 groups>"


def test_a_compression_shows_plan_proof_and_what_changed(tmp_path: Path) -> None:
    part = ArrayDataset(torch.randn(32, 6), torch.arange(32) % 3)
    data = DataSource("toy", part, part, part, 3)
    quick = prunus.RunSettings(modes=())
    done = prunus.compress(net(), data, method="l1", target=0.5, out=tmp_path / "run", progress=False, run=quick)
    assert f"test accuracy {done.accuracy['dense_test']:.4g} -> {done.accuracy['test']:.4g}" in repr(done)
    assert str(done).startswith(str(done.result))
    assert f"{done.accuracy['test']:.2f} %" in str(done)
    short = prunus.compress(net(), (part, part), method="l1", target=0.5, progress=False, run=quick)
    assert f"accuracy {short.accuracy['dense']:.4g} ->" in repr(short)
