"""What `import prunus` brings along: torch, and nothing else that takes long."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("scipy", "accelerate", "torch._dynamo", "sympy", "matplotlib", "transformers", "onnx", "onnxruntime", "numba")


def test_what_is_heavy_is_imported_where_it_is_used() -> None:
    code = f"from prunus import *\nimport prunus.cli, sys\nprint([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
