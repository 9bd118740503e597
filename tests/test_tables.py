"""Tables show names, reasons and paths as they are, brackets included."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from prunus.reports.tables import masks_table, prunability
from traced import traced

QUOTED = "read by h.t()[keep].t() [/INST] [red]"


def shown(table: object) -> str:
    console = Console(width=200, file=io.StringIO())
    with console.capture() as text:
        console.print(table)
    return text.get()


def test_reasons_are_no_markup() -> None:
    graph = traced("mlp")[2]
    locked = [replace(g, locked=QUOTED) for g in graph.channel_groups]
    assert QUOTED in shown(prunability(replace(graph, channel_groups=locked, model="Net[2]")))


def test_names_of_layers_are_no_markup() -> None:
    layer = {"kept": 1, "weights": 2, "stored_bytes": 3, "dense_bytes": 8, "confidence": None, "diversity": None}
    text = shown(masks_table({"model": "Net[a]", "data": "[b]", "layers": {"blocks[0]": {**layer, "flips": None}}}))
    assert "Net[a] on [b]" in text
    assert "blocks[0]" in text
