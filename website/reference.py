"""The reference: a page for every room that defines public names, from `src/prunus/names.py` and the docstrings."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALSO = ("errors", "testing", "trainers.midway", "trainers.transformers", "trainers.lightning")
"""Modules whose names are public under their own address."""


def places() -> dict[str, str]:
    """Public name -> the module that defines it, read from the source."""
    tree = ast.parse((ROOT / "src/prunus/names.py").read_text())
    table = next(n.value for n in tree.body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "PLACES")
    return ast.literal_eval(table) if table else {}


def rooms() -> dict[str, str]:
    """Room -> what is in it, from the table in CONTRIBUTING."""
    rows = re.findall(r"^\| ((?:`\w+/?`(?:, )?)+) \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    return {room: told for names, told in rows for room in re.findall(r"`(\w+)", names)}


def pages() -> dict[str, str]:
    """Page -> text."""
    of_room: dict[str, list[str]] = defaultdict(list)
    for name, place in places().items():
        of_room[place.split(".")[0]].append(name)
    told = rooms()
    made = {}
    for room in [r for r in told if r in of_room]:
        text = f"# {room}\n\n{told[room].capitalize()}.\n\n"
        made[f"reference/{room}.md"] = text + "\n".join(directive(f"prunus.{name}") for name in of_room[room])
    index = ["# Public names", "", "What `import prunus` offers, by the room that defines it.", ""]
    for room in [r for r in told if r in of_room]:
        names = ", ".join(f"[`{n}`]({room}.md#prunus.{n})" for n in of_room[room])
        index.append(f"- **{room}**: {names}")
    return {"reference/index.md": "\n".join(index), **made}


def directive(name: str) -> str:
    """The place of a docstring."""
    return f"::: {name}\n"
