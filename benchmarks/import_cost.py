"""CPU time of every public name of Prunus against `import torch`, and of `prunus --help`, in processes of their own.

`import prunus` alone brings no torch along: names are imported when they are asked for. So what is timed is
`from prunus import *`, at most 1.25 of torch; help may take 1.5 seconds.

    python benchmarks/import_cost.py

A process before the first one writes the byte code, as an installation does.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from options import Parser
from record import interleaved, ratio, write

CODE = "import time; start = time.process_time(); {}; print(time.process_time() - start)"
HELP = """import resource, subprocess, sys
subprocess.run([sys.executable, '-m', 'prunus', '--help'], stdout=subprocess.DEVNULL, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)"""
TIMED = {"torch": CODE.format("import torch"), "prunus": CODE.format("from prunus import *"), "help": HELP}


def seconds(code: str) -> float:
    """What a process prints last."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_repeats(9, small=1)
    args = parser.parse_args()
    seconds(TIMED["prunus"])
    jobs = {name: lambda code=code: seconds(code) for name, code in TIMED.items()}
    times = interleaved(jobs, args.repeats, warmup=int(not args.smoke))
    found = ratio(times, "prunus", "torch")
    print(f"prunus --help: {statistics.median(times['help']):.2f} s of CPU")
    print(f"from prunus import * / import torch, CPU time: {found[0]:.3f} (quartiles {found[1]:.3f} to {found[2]:.3f})")
    print("written to", write("import_cost", {"seconds": times, "ratio": found}))


if __name__ == "__main__":
    main()
