"""Every link between the documents leads to a file, and to a heading that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from architecture import RANK

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """The names under which headings can be linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.name != "CHANGELOG.md"], ids=lambda p: p.name)
def test_files_named_in_backquotes_exist(document: Path) -> None:
    named = set(re.findall(r"`(?:python )?((?:benchmarks|docs|tests|src)/[\w/.-]+\.\w+)", document.read_text()))
    inside = set(re.findall(r"`([a-z]+/[\w/]+\.py)`", document.read_text()))
    missing = {n for n in named if not (ROOT / n).exists()}
    missing |= {n for n in inside if not any((root / n).exists() for root in (ROOT, ROOT / "src/prunus"))}
    assert not missing


def test_contributing_names_the_rooms_in_the_order_of_imports() -> None:
    table = re.findall(r"^\| ((?:`\w+/?`(?:, )?)+) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    rooms = [name for cell in table for name in re.findall(r"`(\w+)", cell)]
    assert set(rooms) == set(RANK) - {"__main__"}
    assert rooms == sorted(rooms, key=RANK.__getitem__)


def test_decisions_have_a_number_each() -> None:
    numbers = re.findall(r"^\*\*D(\d+)\. ", (ROOT / "docs/decisions.md").read_text(), re.MULTILINE)
    assert sorted(map(int, numbers)) == list(range(1, len(numbers) + 1))
