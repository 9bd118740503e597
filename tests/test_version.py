"""The version stands in one place, from which the build reads it."""

from __future__ import annotations

import re
from pathlib import Path

import prunus

ROOT = Path(__file__).parents[1]


def test_the_build_reads_the_version_from_the_package() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    assert not re.search(r"^version\s*=", settings, re.MULTILINE)
    place = re.search(r'\[tool\.hatch\.version\]\npath = "(.+)"', settings)
    assert 'dynamic = ["version"]' in settings
    assert place
    written = re.findall(r'^__version__ = "(.+)"$', (ROOT / place[1]).read_text(), re.MULTILINE)
    assert written == [prunus.__version__]
