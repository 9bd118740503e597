"""New random networks, as many as asked: proven, refused with nothing changed, or found wrong.

    python benchmarks/explore.py --nets 2000 --kind token --seed 0 --out counts.json

The counts are written after every network, so that the command goes on where it was stopped.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "property")]

from examine import KINDS, examine, program_of  # noqa: E402

from options import Parser  # noqa: E402

GOOD = ("proven", "rewritten", "locked", "refused")


def main() -> None:
    """Examine the networks of consecutive seeds and count how they end."""
    parser = Parser(__doc__, nets=4, kind="image")
    parser.add_argument("--nets", type=int, default=2000)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    done: dict[str, list[int]] = {}
    if options.out is not None and options.out.exists():
        done = json.loads(options.out.read_text())
    seen = {seed for seeds in done.values() for seed in seeds}
    start = time.monotonic()
    for seed in range(options.seed, options.seed + options.nets):
        if seed in seen:
            continue
        try:
            outcome: str = examine(options.kind, program_of(options.kind, seed), seed)
        except AssertionError as error:
            outcome = "wrong"
            print(f"wrong {options.kind} {seed}: {error}", flush=True)
        except Exception as error:
            outcome = "crashed"
            place = traceback.extract_tb(error.__traceback__)[-1]
            said = " ".join(str(error).split())[:200]
            print(f"crashed {options.kind} {seed}: {type(error).__name__} {said} ({place.name})", flush=True)
        done.setdefault(outcome, []).append(seed)
        if options.out is not None:
            options.out.write_text(json.dumps(done))
        if (seed - options.seed) % 50 == 49:
            print(told(done), f"{time.monotonic() - start:.0f} s", flush=True)
    print(options.kind, told(done))
    sys.exit(any(name not in GOOD for name in done))


def told(done: dict[str, list[int]]) -> str:
    """The counts in words."""
    return ", ".join(f"{name} {len(seeds)}" for name, seeds in sorted(done.items()))


if __name__ == "__main__":
    main()
