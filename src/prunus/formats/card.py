"""The model card of an artifact: what was made from what, at what cost, with what accuracy, and how to load it."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from prunus.masks.file import LayerMask
from prunus.plan.plan import Plan
from prunus.plan.resources import RESOURCES


def model_card(
    plan: Plan, metrics: Mapping[str, Any], masks: Mapping[str, LayerMask], missing: str | None = None
) -> str:
    """The card as Markdown. Names and texts that come from outside are shown as they are, and format nothing.

    Args:
        plan: what was kept.
        metrics: name -> number or text.
        masks: what is kept inside weights, by layer.
        missing: why there is no program, or None.
    """
    rows = "\n".join(f"| {_text(name)} | {_text(value)} |" for name, value in metrics.items())
    table = f"\n| metric | value |\n|---|---|\n{rows}\n" if rows else ""
    lines = [f"| {_text(name)} | {_text(m.pattern)} | {m.kept:,} of {m.mask.numel():,} |" for name, m in masks.items()]
    inside = "\n".join(["\n| weight | pattern | kept |", "|---|---|---|", *lines, ""]) if masks else ""
    alone = "or without any of its code, `prunus.load(folder)`"
    if missing is not None:
        alone = f"there is no program: {_text(missing)}"
    counted = [r for r in RESOURCES.values() if r.label and r.name in plan.before and r.name in plan.after]
    told = [f"| {r.label} | {r.describe(plan.before[r.name])} | {r.describe(plan.after[r.name])} |" for r in counted]
    costs = "\n".join(["| | before | after |", "|---|---|---|", *told])
    plain = "\n".join(f"    {line}" for line in plan.explain().splitlines())
    how = "with zeros inside its weights" if plan.patterns else "by removing units for good"
    model, asked = _text(plan.model), _text(plan.asked or "counts by hand")
    return f"""# {model}, compressed by Prunus

Made from a dense {model} {how} ({_text(plan.method)}; asked: {asked}).

{costs}
{table}
Load with the dense model's factory, `prunus.load(folder, factory)`; {alone}.

{plain}
{inside}"""


def _text(value: Any) -> str:
    """One line of Markdown that reads as the value does: no markup of its own takes effect."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(line, quote=False))
