"""Every script in examples/ runs as it stands, is short, and shows what it was made to show."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from prunus.kernels import masks, products

EXAMPLES = Path(__file__).parents[1] / "examples"
SHOWN = {
    "huggingface_classifier": r"from_pretrained: 2 heads, \d+ neurons, logits differ by at most \d\.\de[-+]\d+",
    "int8_finish": r"int8\.onnx: [\d,]+ bytes; 8-bit ONNX",
    "language_model": r"smaller goes on: \[\d+",
    "latency_target": r"asked: latency@eager<=\d+%",
    "no_labels": r"distilled: \d+\.\d%",
    "own_cnn": r"loaded: \d+ parameters",
    "trainer_callback": r"until step 8, [\d,]+ from then on",
    "two_of_four": r"refitted: .* at most 2 stay\nlearned: .* at most 2 stay",
}
"""Example -> what its last lines say; all of them print a plan, and that it was proven, besides."""


@pytest.mark.usefixtures("no_clock")
@pytest.mark.parametrize("name", SHOWN)
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    if name in ("huggingface_classifier", "language_model", "trainer_callback"):
        pytest.importorskip("transformers")
    # Compiling the loops would take longer than all examples together.
    monkeypatch.setattr(masks, "available", lambda: False)
    monkeypatch.setattr(products, "available", lambda: False)
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "out")])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert re.search(SHOWN[name], said), said
    assert name == "two_of_four" or "proof: pruned = masked model" in said


@pytest.mark.dist
def test_two_processes_end_with_the_same_weights() -> None:
    command = [sys.executable, str(EXAMPLES / "two_processes.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told = dict(re.findall(r"process (\d): (.+)", done.stdout))
    assert set(told) == {"0", "1"}
    assert told["0"] == told["1"]


def test_all_are_short_and_tried() -> None:
    scripts = {path.stem: path.read_text().splitlines() for path in EXAMPLES.glob("*.py")}
    assert set(scripts) == {*SHOWN, "two_processes", "variational_dropout"}
    assert max(map(len, scripts.values())) < 80
