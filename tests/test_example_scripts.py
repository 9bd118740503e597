"""Every script in examples/ runs as it stands, is short, and shows what it was made to show.

What needs a package that is not here is skipped; `make examples` runs all, each in an environment of what it needs.
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunus.kernels import masks, products
from prunus.runtime.extras import EXTRAS, there
from prunus.runtime.installed import NEEDED
from torchvision_operators import stand_in_for_suppression

EXAMPLES = Path(__file__).parents[1] / "examples"
SHOWN = {
    "huggingface_classifier": r"from_pretrained: 2 heads, \d+ neurons, logits differ by at most \d\.\de[-+]\d+",
    "int8_finish": r"int8\.onnx: [\d,]+ bytes; 8-bit ONNX",
    "language_model": r"smaller goes on: \[\d+",
    "latency_target": r"asked: latency@eager<=\d+%",
    "lightning_callback": r"load_from_checkpoint: [\d,]+ parameters, differs by 0\.0e\+00\nresumed: from step 32 to 48",
    "no_labels": r"distilled: \d+\.\d%",
    "own_cnn": r"loaded: \d+ parameters",
    "timm_cnn": r"stock timm: logits differ by at most 0\.0e\+00; a new head \(32, 7\)",
    "torchvision_detector": r"loaded: a RetinaNet, \[\d+, \d+\] boxes, the same: True",
    "trainer_callback": r"until step 8, [\d,]+ from then on",
    "ultralytics_yolo": r"loaded as saved: True; trained on: 244,452 -> 1\d\d,\d+ parameters\nexported: best.onnx",
    "two_of_four": r"refitted: .* at most 2 stay\nlearned: .* at most 2 stay",
}
"""Example -> what its last lines say; all of them print a plan, and that it was proven, besides."""
MODULES = {"pillow": "PIL"}
"""Distribution -> the module to import, where they differ."""


def imported(name: str) -> set[str]:
    """Modules that an example imports and neither Python nor `pip install prunus` brings."""
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text())
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = [n.module or "" if isinstance(n, ast.ImportFrom) else n.names[0].name for n in nodes]
    return {n.split(".")[0] for n in names} - {*sys.stdlib_module_names, *NEEDED, "prunus"}


def needed(name: str) -> set[str]:
    """Modules of the packages that an example says it needs."""
    told = re.search(r"^Needs: pip install (.+)$", (EXAMPLES / f"{name}.py").read_text(), re.MULTILINE)
    words = shlex.split(told[1]) if told else []
    extras = [e for word in words for e in re.findall(r"^prunus\[(.+)\]$", word)]
    brought = [d for listed in extras for extra in listed.split(",") for d in EXTRAS[extra]]
    return {MODULES.get(d, d) for d in (*brought, *(w for w in words if not w.startswith("prunus")))}


@pytest.fixture(autouse=True)
def _nothing_of_accelerate_stays() -> Iterator[None]:
    yield
    if (state := sys.modules.get("accelerate.state")) is not None:  # transformers' Trainer leaves its own
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("no_clock")
@pytest.mark.parametrize("name", SHOWN)
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    if missing := sorted(module for module in needed(name) if not there(module)):
        pytest.skip(f"{', '.join(missing)} not installed; `make examples NAMES={name}` runs it where it is")
    stand_in_for_suppression()
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


@pytest.mark.parametrize("name", sorted(p.stem for p in EXAMPLES.glob("*.py")))
def test_an_example_says_what_it_needs(name: str) -> None:
    assert imported(name) <= needed(name)
