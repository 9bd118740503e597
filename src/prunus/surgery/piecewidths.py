"""Numbers that a module holds of the equal pieces in which its code cuts what one of its layers makes."""

from __future__ import annotations

from torch import nn

from prunus.plan.plan import Plan
from prunus.surgery.steps import Steps, set_attribute_

PIECE_WIDTHS = ("c",)
"""Names under which modules hold the width of one piece (Ultralytics' C2f and its kin split by it when exported)."""


def set_piece_widths_(model: nn.Module, plan: Plan) -> Steps:
    """Set them where all pieces of a layer keep equally many; what puts them back, in order."""
    steps: Steps = []
    pieces: dict[str, list[tuple[int, int]]] = {}
    for group in plan.groups:
        pieces.setdefault(group.name.partition("#")[0], []).append((group.units, len(group.kept)))
    modules = dict(model.named_modules())
    for layer, sizes in pieces.items():
        units, kept = sizes[0]
        if len(sizes) < 2 or set(sizes) != {(units, kept)} or units == kept:
            continue
        holder = layer
        while holder := holder.rpartition(".")[0]:
            found = [name for name in PIECE_WIDTHS if holder in modules and vars(modules[holder]).get(name) == units]
            for name in found:
                steps += set_attribute_(modules[holder], name, kept)
            if found:
                break
    return steps
