"""What every benchmark writes down beside its numbers: commit, versions, hardware, seeds; and how it measures time."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from options import scratch, smoking

RESULTS = Path(__file__).resolve().parent / "results"


def results() -> Path:
    """Where results are written; a smoke run's never come near the committed ones."""
    return scratch() if smoking() else RESULTS


def provenance() -> dict[str, Any]:
    """Commit, dirty flag, versions and device."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()

    return {
        "commit": git("rev-parse", "--short", "HEAD"),
        # Results are written while a benchmark runs.
        "dirty": bool(git("status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)benchmarks/results")),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "threads": torch.get_num_threads(),
    }


def cpu_name() -> str:
    """Model name and instruction set of the processor."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = lines[0] if lines else name
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def write(name: str, data: dict[str, Any]) -> Path:
    """Write one result file with its provenance."""
    path = results() / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps({"provenance": provenance(), **data}, indent=1))
    os.replace(temporary, path)
    return path


class Log:
    """Rows of results, one JSON line each: what was run is known, what is new is appended at once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows: list[dict[str, Any]] = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )

    def has(self, key: dict[str, Any]) -> bool:
        """True if a row has all these values."""
        return any(all(r.get(k) == v for k, v in key.items()) for r in self.rows)

    def add(self, row: dict[str, Any], *hidden: str) -> None:
        """Append a row with its provenance, and print it without what is hidden."""
        row = {**row, "provenance": provenance()}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print({k: v for k, v in row.items() if k not in ("provenance", *hidden)}, flush=True)


def mean_std(values: Sequence[float]) -> str:
    """`mean ± std` with two decimals; the sample standard deviation."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def timed(
    job: Callable[[], object], inner: int = 1, clock: Callable[[], float] = time.process_time
) -> Callable[[], float]:
    """Seconds of one run of `job`, the mean of `inner`; CPU time of the process unless another clock is given."""

    def run() -> float:
        start = clock()
        for _ in range(inner):
            job()
        return (clock() - start) / inner

    return run


def interleaved(jobs: dict[str, Callable[[], float]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Run the jobs in turn, so that a change of load hits all of them; each returns its own seconds."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(warmup + repeats):
        for name, job in jobs.items():
            seconds = job()
            if repeat >= warmup:
                times[name].append(seconds)
    return times


def ratio(times: dict[str, list[float]], one: str, other: str) -> tuple[float, float, float]:
    """Median, lower and upper quartile of the per-repeat ratios one / other."""
    ratios = sorted(a / b for a, b in zip(times[one], times[other], strict=True))
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return statistics.median(ratios), quartiles[0], quartiles[2]
