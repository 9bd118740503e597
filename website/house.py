"""The picture of the house, drawn from the order of the rooms: `python website/house.py > docs/house.svg`.

A storey is what stands between two `<` in `tests/architecture.py`; what a room holds is the table in CONTRIBUTING.
"""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path

import reference

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, STOREY, LEFT = 190, 34, 46, 6
HUE, LINE, INK = "#ede7f6", "#7e57c2", "#311b92"


def storeys() -> list[list[str]]:
    """The rooms, from the ground up."""
    text = (ROOT / "tests" / "architecture.py").read_text()
    found = re.search(r'^ORDER = """(.*?)"""', text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError("tests/architecture.py has no ORDER")
    return [rooms.split() for rooms in found[1].split("<")]


def drawn() -> str:
    """The picture as SVG; a room says what is in it where the pointer rests."""
    told = reference.rooms()
    floors = storeys()
    wide = LEFT * 2 + max(map(len, floors)) * WIDTH
    high = STOREY * len(floors) + LEFT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" font-size="16">',
        "<title>The rooms of Prunus: each imports only from storeys below it</title>",
        f'<rect width="{wide}" height="{high}" rx="8" fill="#fff"/>',
    ]
    for floor, rooms in enumerate(floors):
        y = high - STOREY * (floor + 1)
        room_width = (wide - 2 * LEFT) / len(rooms)
        for place, room in enumerate(rooms):
            x = LEFT + place * room_width
            parts.append(
                f'<g><title>{escape(told.get(room, "python -m prunus"))}</title><rect x="{x + 3:g}" y="{y:g}" '
                f'width="{room_width - 6:g}" height="{HEIGHT}" rx="5" fill="{HUE}" stroke="{LINE}"/>'
                f'<text x="{x + room_width / 2:g}" y="{y + 22:g}" text-anchor="middle" fill="{INK}">{room}</text></g>'
            )
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    sys.stdout.write(drawn())
