"""Where a run comes from: what has to be the same for another one to give the same."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
from torch import nn

from prunus.files.fingerprint import weights_digest


def provenance(dense: nn.Module, smaller: nn.Module) -> dict[str, str]:
    """Versions, the commit of this package where it is known, threads and digests of the weights, by name.

    Args:
        dense: the network that was given.
        smaller: what came out.
    """
    from prunus import __version__

    commit = _commit()
    return {
        "prunus": __version__,
        **({"commit": commit} if commit else {}),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "weights given": weights_digest(dense),
        "weights made": weights_digest(smaller),
    }


def _commit() -> str:
    """The commit that this package was installed from, or that its checkout is at; "" if neither is known."""
    try:
        noted = distribution("prunus").read_text("direct_url.json")
        found = json.loads(noted or "{}").get("vcs_info", {}).get("commit_id", "")
    except (PackageNotFoundError, ValueError):
        found = ""
    package = Path(__file__).parents[1]
    checkout = package.parents[1]
    # Elsewhere the package lies in somebody else's checkout, whose commit says nothing of it.
    if found or package != checkout / "src" / package.name or not (checkout / ".git").exists():
        return str(found)

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except OSError:  # there is no git here
        return ""
