"""A method of an outsider, in one file outside of the package, goes every way that a built-in one goes."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import prunus
from prunus.cli.app import main
from prunus.methods import StagedMethod, resolve
from prunus.testing import check_method, check_posterior

EXAMPLE = Path(__file__).parents[1] / "examples" / "variational_dropout.py"
SPEC = f"{EXAMPLE}:VariationalDropout"
MODEL = """
import torch
from torch import nn
from prunus.data.datasets import ArrayDataset, DataSource

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
    )

def data():
    g = torch.Generator().manual_seed(0)
    def part(n):
        x = torch.randint(0, 255, (n, 1, 8, 8), dtype=torch.uint8, generator=g)
        return ArrayDataset(x, torch.randint(0, 4, (n,), generator=g), mean=(0.5,), std=(0.25,))
    return DataSource("toy", part(64), part(32), part(32), 4)
"""


pytestmark = pytest.mark.usefixtures("names_of_methods_kept")


def method(**settings: Any) -> StagedMethod:
    found = resolve(SPEC)
    assert isinstance(found, StagedMethod)
    return replace(found, **settings)


def test_the_file_is_short_and_knows_the_public_rooms_alone() -> None:
    text = EXAMPLE.read_text()
    inside = {n.module for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) and n.module}
    assert {m for m in inside if m.startswith("prunus")} == {"prunus.methods", "prunus.posteriors"}
    statements = [line for line in text.split('"""')[2].splitlines() if line.strip()]
    assert len(statements) <= 42


def test_it_passes_the_checks() -> None:
    found = type(method())
    check_method(found)
    check_method(found, beta=3.0, simultaneous=False)
    check_posterior(method().posterior)


@pytest.mark.parametrize("target", [None, "params<=60%"])
def test_it_prunes_by_its_own_rule_and_to_a_budget(target: str | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(128, 6)
    data = [(x[i : i + 32], (x[i : i + 32, 0] > 0).long()) for i in range(0, 128, 32)]
    options: dict[str, Any] = {"data": data, "loss_fn": F.cross_entropy, "progress": False}
    result = prunus.prune(model, x[:2], method=method(epochs=40, lr=0.1, beta=3.0), target=target, **options)
    kept = {g.name: (len(g.kept), g.units) for g in result.plan.groups}
    assert result.plan.method == "vdrop"
    assert result.verification.passed
    assert all(0 < k <= units for k, units in kept.values())
    assert sum(k for k, _ in kept.values()) < sum(units for _, units in kept.values())
    assert set(result.scores.posteriors) == set(kept)
    assert [len(s.groups) for s in result.stages] == [2]
    if target:
        assert result.plan.after.params <= 0.6 * result.plan.before.params


def test_the_command_line_takes_the_file_and_writes_summary_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, out = tmp_path / "m.py", tmp_path / "run"
    script.write_text(MODEL)
    arguments = ["compress", f"{script}:net", "--data", f"{script}:data", "--method", SPEC, "--no-onnx"]
    arguments += ["--set", "epochs=2", "--set", "tune_epochs=0", "--set", "beta=3", "--epochs", "1", "--out", str(out)]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0, capsys.readouterr().err
    summary = json.loads((out / "summary.json").read_text())
    assert "vdrop" in json.dumps(summary)
    assert json.loads((out / "plan.json").read_text())["method"] == "vdrop"
    assert (out / "figures" / "stages.png").read_bytes().startswith(b"\x89PNG")
    assert prunus.load(out / "artifact")(torch.randn(1, 1, 8, 8)).shape == (1, 4)


def test_what_is_wrong_with_its_settings_is_said_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "m.py"
    script.write_text(MODEL)
    arguments = ["compress", f"{script}:net", "--data", f"{script}:data", "--out", str(tmp_path / "run"), "--no-onnx"]
    for more, told in (
        (["--method", SPEC, "--set", "bta=3"], "use beta"),
        (["--method", f"{EXAMPLE}:DropoutPosterior"], "DropoutPosterior is no method"),
        (["--method", f"{EXAMPLE}:Nothing"], "has no 'Nothing'"),
        (["--method", "vdropp"], "there is none of that name"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*arguments, *more])
        assert end.value.code == 2
        assert told in " ".join(capsys.readouterr().err.split())
