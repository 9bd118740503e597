"""A test file run as two processes, each of which writes down what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prunus.runtime.processes import accelerator

TESTS = Path(__file__).parents[1]


def two_processes(script: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both found; the script calls `write_down` where it is run itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, str(folder)]
    seen = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    ours = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": seen}
    done = subprocess.run(
        command, env={**os.environ, **ours}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    return first, second


def write_down(found: Callable[[int, int], Any]) -> None:
    """In one of the processes: call with its number and how many there are, and write down the answer."""
    with accelerator() as processes:
        rank, world = processes.process_index, processes.num_processes
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(found(rank, world)))
    torch.distributed.destroy_process_group()
