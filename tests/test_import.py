"""What `import prunus` brings along: torch, and nothing else that takes long."""

from __future__ import annotations

import subprocess
import sys

TRAINING = ("scipy", "accelerate", "sympy", "torch._dynamo", "numba")
EXTRAS = ("matplotlib", "transformers", "onnx", "onnxruntime")
TERMINAL = ("rich.console", "typer")


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
