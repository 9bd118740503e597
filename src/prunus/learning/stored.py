"""Learned masks in the form in which they are stored."""

from __future__ import annotations

from prunus.learning.findings import LearnedMasks
from prunus.masks.file import LayerMask
from prunus.methods.base import Method
from prunus.plan.plan import Plan


def stored_masks(method: Method, found: LearnedMasks, plan: Plan) -> dict[str, LayerMask]:
    """By layer: the pattern, which elements stay, and the grids of values and inputs.

    Args:
        method: what learned them; says how many bits the values have.
        found: masks and layouts.
        plan: has the patterns as they were asked for; of whole filters it has none.
    """
    asked = {p.module: p.pattern for p in plan.patterns}
    return {
        name: LayerMask(
            asked.get(name, str(found.layouts[name].pattern)),
            mask,
            getattr(method, "bits", None),
            found.inputs[name].scale if name in found.inputs else None,
        )
        for name, mask in found.masks.items()
    }
