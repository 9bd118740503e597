"""What `import prunus` brings along: torch, and nothing else that takes long."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prunus
from prunus.names import PLACES

TRAINING = ("scipy", "accelerate", "sympy", "torch._dynamo", "numba")
EXTRAS = ("matplotlib", "transformers", "onnx", "onnxruntime")
TERMINAL = ("rich.console", "typer")


def test_torch_comes_with_the_first_name_that_is_asked_for() -> None:
    code = "import sys, prunus; print('torch' in sys.modules, prunus.Plan.__name__, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "Plan", "True"]


def test_the_table_of_names_and_what_type_checkers_see_agree() -> None:
    tree = ast.parse(Path(prunus.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {n: f"prunus.{p}" if ":" in p else f"prunus.{p}:{n}" for n, p in PLACES.items()}
    assert sorted(prunus.__all__) == dir(prunus) == sorted([*seen, "__version__"])
    for name in PLACES:
        assert callable(getattr(prunus, name))
    with pytest.raises(AttributeError, match="no attribute 'prne'"):
        _ = prunus.prne
    assert prunus.plan.Plan is prunus.Plan  # rooms can be had without an import of their own


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_addresses_are_found_and_leave_the_functions_that_took_their_names() -> None:
    code = """
import prunus, prunus.finetune, prunus.evaluate, prunus.datasets, prunus.export.onnx
from prunus.export.program.files import GRAPH
from prunus.finetune import FinetuneConfig
from prunus.formats.onnx import export_onnx
print(prunus.export.onnx.export_onnx is export_onnx, FinetuneConfig is prunus.FinetuneConfig)
for wrong in (prunus.finetune, prunus.evaluate, prunus.export, prunus.datasets):
    try:
        wrong("no model", [], "x.onnx")
    except Exception as error:
        print(type(error).__name__)
print(prunus.finetune.__name__, prunus.export.__name__)
"""
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    refusals = ["ConfigError"] * 3 + ["TypeError"]
    assert found.stdout.split() == ["True", "True", *refusals, "finetune", "export"]


def test_what_is_heavy_is_imported_where_it_is_used() -> None:
    code = f"""
import sys
from prunus import *
print([name for name in {TRAINING + EXTRAS + TERMINAL} if name in sys.modules])
import prunus.cli.app
print([name for name in {TRAINING + EXTRAS} if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["[]", "[]"]
