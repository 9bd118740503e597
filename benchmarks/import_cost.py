"""CPU time of `import prunus` against `import torch`, each in a process of its own, in turns: at most 1.25 of it.

    python benchmarks/import_cost.py

A process before the first one writes the byte code, as an installation does.
"""

from __future__ import annotations

import os
import subprocess
import sys

from options import Parser
from record import interleaved, ratio, write

CODE = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"


def seconds(module: str) -> float:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", CODE.format(module)]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_repeats(9, small=1)
    args = parser.parse_args()
    seconds("prunus")
    jobs = {m: lambda m=m: seconds(m) for m in ("torch", "prunus")}
    times = interleaved(jobs, args.repeats, warmup=int(not args.smoke))
    found = ratio(times, "prunus", "torch")
    print(f"import prunus / import torch, CPU time: {found[0]:.3f} (quartiles {found[1]:.3f} to {found[2]:.3f})")
    print("written to", write("import_cost", {"seconds": times, "ratio": found}))


if __name__ == "__main__":
    main()
