"""The blocks of code in the documents: which language, which lines, and whether a reason is given not to run them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(str(p.relative_to(ROOT)) for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<kind>.*)\n(?P<text>(?:.*\n)*?)^```$", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """One block. `reason`: why it is not run, from the comment before it (`<!-- not run: ... -->`); or empty."""

    document: str
    line: int
    kind: str
    text: str
    reason: str

    @property
    def commands(self) -> list[str]:
        """The lines of a shell, without remarks."""
        lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in self.text.splitlines())
        return [line for line in lines if line]


def blocks(document: str, kind: str | None = None) -> list[Block]:
    """All blocks of a document, or those of one kind."""
    text = (ROOT / document).read_text()
    found = [
        Block(document, text[: m.start()].count("\n") + 1, m["kind"], m["text"], m["reason"] or "")
        for m in BLOCK.finditer(text)
    ]
    return [b for b in found if kind in (None, b.kind)]
