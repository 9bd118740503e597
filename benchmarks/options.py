"""The command line of every benchmark: `--smoke` (the same path in seconds), and the options that several share."""

from __future__ import annotations

import argparse
import atexit
import functools
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SKIPPED = 77
"""Exit status of a benchmark that lacks a package or a device."""
_smoking: list[bool] = []


class Parser(argparse.ArgumentParser):
    """Options of a benchmark.

    Args:
        doc: the script's docstring.
        small: values of options in a smoke run, where not given; an option that has one need not be given there.
    """

    def __init__(self, doc: str | None, **small: Any) -> None:
        # An abbreviated --smoke would be seen by argparse alone.
        super().__init__(
            description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )  # fmt: skip
        self.small = small
        self.add_argument("--smoke", action="store_true", help="seconds on tiny sizes, to see that it runs")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse does; with --smoke the options are small, and results go to a folder that is thrown away."""
        given = sys.argv[1:] if args is None else list(args)
        if "--smoke" in given:
            _smoking.append(True)
            for action in self._actions:
                action.required = action.required and action.dest not in self.small
            self.set_defaults(**self.small)
        return super().parse_args(given, namespace)

    def add_data(self, what: str) -> None:
        """`--data`: real data, that a smoke run does without."""
        self.small.setdefault("data", None)
        self.add_argument("--data", required=True, metavar="DIR", help=f"folder of {what}; made up with --smoke")

    def add_weights(self, what: str) -> None:
        """`--weights`: a trained network, that a smoke run does without."""
        self.small.setdefault("weights", None)
        self.add_argument("--weights", required=True, metavar="FILE", help=f"{what}; random with --smoke")

    def add_cache(self) -> None:
        """`--cache`: where dense networks that were trained here stay; a smoke run trains its own."""
        self.add_argument("--cache", type=Path, help="trained dense networks; default ~/.cache/prunus-bench")

    def add_seeds(self, *default: int) -> None:
        """`--seeds`: one in a smoke run."""
        self.small.setdefault("seeds", [0])
        self.add_argument("--seeds", type=int, nargs="+", default=list(default))

    def add_split(self) -> None:
        """`--split`: what is judged on."""
        self.add_argument("--split", choices=("validation", "test"), default="validation")

    def add_repeats(self, default: int, small: int = 2) -> None:
        """`--repeats`: how often each way is timed."""
        self.small.setdefault("repeats", small)
        self.add_argument("--repeats", type=int, default=default)


def smoking() -> bool:
    """Whether this process is a smoke run."""
    return bool(_smoking)


@functools.cache
def scratch() -> Path:
    """A folder that is deleted when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="prunus-smoke-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def cache_of(args: argparse.Namespace) -> Path:
    """The folder of `--cache`."""
    return args.cache or (scratch() if smoking() else Path.home() / ".cache" / "prunus-bench")


def needs(*packages: str) -> None:
    """End with SKIPPED and one line if a package is missing."""
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing:
        skip(f"{', '.join(missing)} not installed")


def skip(why: str) -> None:
    """End with SKIPPED and one line."""
    print(f"skipped: {why}", flush=True)
    raise SystemExit(SKIPPED)
