"""Every example in a fresh environment of what its docstring says it needs: `make examples`, or `examples.py NAME ...`

An example's docstring holds `Needs: pip install 'prunus[EXTRA]'`; without that line it needs `prunus` alone. Those that
need the same share one environment, made anew under `runs/examples`. Exits with 1 if one fails.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "runs/examples"
NEEDS = re.compile(r"^Needs: pip install (.+)$", re.MULTILINE)
LIMIT = 600
"""Seconds for one example."""
FITS = """
import importlib.util
if importlib.util.find_spec("torchvision"):
    import torchvision
    torchvision.extension._assert_has_ops()
"""
STAND_IN = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
from torchvision_operators import stand_in_for_suppression
stand_in_for_suppression()
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""What runs an example where torchvision was built for another torch than there is (the registry has but one build)."""


def needs(script: Path) -> tuple[str, ...]:
    """What its docstring asks pip for."""
    told = NEEDS.search(ast.get_docstring(ast.parse(script.read_text())) or "")
    return tuple(shlex.split(told[1])) if told else ("prunus",)


def environment(wanted: tuple[str, ...]) -> Path:
    """The python of a new environment that holds what is wanted; `prunus` means this checkout."""
    folder = PLACE / re.sub(r"\W+", "-", " ".join(wanted)).strip("-")
    venv.create(folder, clear=True, with_pip=True)
    python = folder / "bin/python"
    packages = [re.sub(r"^prunus\b", str(ROOT), name) for name in wanted]
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, "torch"], check=True)  # first, so that a build that is there for this machine is taken
    subprocess.run([*pip, *packages], check=True)
    return python


def ran(python: Path, script: Path) -> tuple[str, float, str]:
    """How it ended, after how many seconds, and its last line."""
    out = PLACE / "out" / script.stem
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    fits = subprocess.run([python, "-I", "-c", FITS], capture_output=True, check=False).returncode == 0
    begin = [] if fits else ["-c", STAND_IN, ROOT / "tests"]
    command = [python, "-I", *begin, script, out]  # isolated: nothing of the checkout or of the user is on the path
    try:
        done = subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return "too long", LIMIT, ""
    (out / "said.txt").write_text(done.stdout + done.stderr)
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    state = "failed" if done.returncode else "ran" if fits else "ran*"
    return state, time.perf_counter() - start, lines[-1] if lines else ""


def rows(scripts: list[Path]) -> Iterator[tuple[str, ...]]:
    """One for each example, as soon as it has run."""
    for wanted in sorted({needs(s) for s in scripts}):
        python = environment(wanted)
        for script in (s for s in scripts if needs(s) == wanted):
            state, seconds, line = ran(python, script)
            yield state, script.stem, " ".join(wanted), f"{seconds:.0f} s", line


def main() -> int:
    """Run them, print the table, and say how many failed."""
    named = sys.argv[1:]
    scripts = sorted(p for p in (ROOT / "examples").glob("*.py") if "__main__" in p.read_text())
    if unknown := {*named} - {s.stem for s in scripts}:
        sys.exit(f"no such example: {', '.join(sorted(unknown))}")
    failed = 0
    for state, name, wanted, seconds, line in rows([s for s in scripts if not named or s.stem in named]):
        failed += not state.startswith("ran")
        print(f"{state:<8} {name:<26} {wanted:<28} {seconds:>6}  {line[:90]}", flush=True)
    print("* beside a torchvision of another torch: non-maximum suppression by tests/torchvision_operators.py")
    print(f"{failed} failed; what they said: {PLACE.relative_to(ROOT)}/out/NAME/said.txt")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
