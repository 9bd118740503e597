"""The site builds without a warning, has a page for every method and public name, and its picture is of the house."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import prunus
from prunus.methods import METHODS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a warning (a link that leads nowhere, a page that is in no menu) is an error."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(out)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def test_every_method_has_a_page_made_from_its_card(site: Path) -> None:
    ours = {name for name, kind in METHODS.items() if kind.__module__.startswith("prunus.methods")}
    assert ours <= {page.stem for page in (site / "methods").glob("*.html")}
    assert "beta = 1 is the evidence lower bound" in (site / "methods/dirichlet.html").read_text()


def test_every_public_name_has_its_docstring_in_the_reference(site: Path) -> None:
    text = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    shown = set(re.findall(r'id="prunus\.(\w+)"', text))
    assert {name for name in dir(prunus) if not name.startswith("_")} <= shown


def test_the_pages_fetch_nothing(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]+src="?(https?:[^"\s>]+)', page.read_text())
        fetched += re.findall(r'<link[^>]+rel="?stylesheet"?[^>]+href="?(https?:[^"\s>]+)', page.read_text())
        assert not fetched, page.name


def test_the_picture_is_of_the_house_as_it_stands() -> None:
    done = subprocess.run([sys.executable, "website/house.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ROOT / "docs/house.svg").read_text() == done.stdout, "python website/house.py > docs/house.svg"
