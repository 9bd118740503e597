"""The processor's name and features, as the system tells them."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """What the maker calls it, as far as the system knows."""
    return _listed().get("model name") or platform.processor() or platform.machine()


def processor_features() -> frozenset[str]:
    """Names of its features as Linux lists them; empty elsewhere."""
    listed = _listed()
    return frozenset((listed.get("flags") or listed.get("features") or "").split())


def _listed() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in lines}
