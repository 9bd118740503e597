"""Every benchmark's `--help` and smoke run, each in a process of its own, and how long they took.

    python benchmarks/smoke.py [NAME ...]

Status 1 if one fails. A script that lacks a package or a device says so and is skipped; the last line counts those.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from options import SKIPPED

HERE = Path(__file__).resolve().parent
MODES: dict[str, list[str]] = {
    "cifar_resnet": ["", "--method rbp"],
    "cifar_vgg": ["", "--control", "--l1-at 50"],
    "condensed_cost": ["", "--device interpreter"],
    "large_model": ["", "--shape moe-30b"],
    "lenet_mnist": ["", "--method rbp"],
    "real_models": [f"--only {n}" for n in ("crepe", "mobilenet", "stories")],
}
"""Options of the smoke runs of scripts that have several ways through them."""


@dataclass(frozen=True)
class Outcome:
    """How one command ended: `ok`, `skipped` or what went wrong, and its last line."""

    status: str
    cpu_seconds: float
    seconds: float
    said: str


def scripts() -> list[str]:
    """Names of the files that can be run, this one apart."""
    found = sorted(HERE.glob("*.py"))
    return [p.stem for p in found if p != Path(__file__).resolve() and '__name__ == "__main__"' in p.read_text()]


def outcome_of(name: str, options: list[str], limit: float) -> Outcome:
    """Run a script; what it writes to the checkout counts as a failure."""
    before, start = committed(), time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(HERE / f"{name}.py"), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        status = {0: "ok", SKIPPED: "skipped"}.get(done.returncode, f"FAILED ({done.returncode})")
        lines = (done.stdout if status != f"FAILED ({done.returncode})" else done.stderr).strip().splitlines()
    except subprocess.TimeoutExpired:
        status, lines = f"FAILED (over {limit:.0f} s)", []
    if committed() != before:
        status = "FAILED (it wrote results)"
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return Outcome(status, cpu, time.perf_counter() - start, lines[-1] if lines else "")


def committed() -> dict[Path, tuple[int, int]]:
    """Size and time of everything that a full run writes."""
    files = [*HERE.glob("results/*"), *HERE.parent.glob("docs/*.md")]
    return {f: (f.stat().st_size, f.stat().st_mtime_ns) for f in files}


def main() -> int:
    """Print the table; 1 if a command fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=scripts(), metavar="NAME")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one command")
    args = parser.parse_args()
    commands = [(n, o) for n in args.names for o in ("--help", *(f"--smoke {m}".strip() for m in MODES.get(n, [""])))]
    failed, skipped, start = 0, list[str](), time.perf_counter()
    print(f"{'command':<52} {'CPU s':>6} {'s':>6}  status")
    for name, options in commands:
        found = outcome_of(name, options.split(), args.limit)
        said = f"{found.status}: {found.said}" if found.status.startswith("FAILED") else found.said
        said = "ok" if found.status == "ok" else said
        skipped += [f"{name}.py {options}"] if found.status == "skipped" else []
        print(f"{f'{name}.py {options}':<52} {found.cpu_seconds:6.1f} {found.seconds:6.1f}  {said}", flush=True)
        failed += found.status.startswith("FAILED")
    told = " ".join([f"{len(skipped)} skipped", *([f"({', '.join(skipped)})"] if skipped else [])])
    print(f"{len(commands)} commands, {failed} failed, {told}, {time.perf_counter() - start:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
