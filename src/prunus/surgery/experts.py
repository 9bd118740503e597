"""Experts out of the user's own module: shorter lists of them, and the numbers by which code and configuration count.

What lies in tensors is cut like any other unit's. Names under which modules and configurations hold the number of
experts, and how many a token is given, are known here; the proof tells if that was all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from prunus.plan.plan import GroupPlan, Plan
from prunus.surgery.steps import Steps, set_attribute_, set_child_

COUNTS = (
    "num_experts", "num_local_experts", "n_routed_experts", "num_routed_experts", "moe_num_experts", "n_experts",
    "expert_num",
)  # fmt: skip
"""Names under which modules and configurations hold the number of experts of a layer."""
CHOICES = (
    "top_k", "topk", "num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "moe_k", "k",
    "num_selected_experts", "top_k_experts",
)  # fmt: skip
"""Names under which they hold how many of them a token is given."""


def routed(plan: Plan) -> list[GroupPlan]:
    """The groups of experts of which some go."""
    return [g for g in plan.groups if g.experts_of is not None and len(g.kept) < g.units]


def set_experts_(model: nn.Module, plan: Plan) -> Steps:
    """Shorten lists of experts, and set what modules know of their number; what undoes it, in order."""
    steps: Steps = []
    groups = routed(plan)
    for group in groups:
        owner, _, name = group.name.rpartition(".")
        held = model.get_submodule(group.name)
        if isinstance(held, nn.ModuleList) and len(held) == group.units:
            shorter = nn.ModuleList([held[n] for n in group.kept]).train(held.training)
            steps += set_child_(model.get_submodule(owner), name, shorter)
    sizes = {(g.units, len(g.kept)) for g in groups}
    for path, module in model.named_modules():
        # A module around all layers of experts counts for all of them.
        inside = {(g.units, len(g.kept)) for g in groups if _lies_in(path, g.experts_of or "")}
        around = sizes if not inside and len(sizes) == 1 and _around(path, groups) else set()
        for units, kept in inside or around:
            for name, value in changes(vars(module), units, kept).items():
                steps += set_attribute_(module, name, value)
    return steps


def renumbered(names: Mapping[str, str], plan: Plan) -> dict[str, str]:
    """Names of the tensors that stay, with the modules of lists of experts by their places in the shorter lists.

    Args:
        names: name before -> name so far.
        plan: what goes.
    """
    found = dict(names)
    for group in routed(plan):
        for old, name in names.items():
            number, _, rest = name.removeprefix(f"{group.name}.").partition(".")
            if name.startswith(f"{group.name}.") and number.isdigit():
                found[old] = f"{group.name}.{group.kept.index(int(number))}.{rest}"
    return found


def _around(path: str, groups: Sequence[GroupPlan]) -> bool:
    return any(_lies_in(g.experts_of or "", path) for g in groups)


def _lies_in(path: str, other: str) -> bool:
    """Whether a module is another one or lies in it; the model itself is ""."""
    return not other or f"{path}.".startswith(f"{other}.")


def changes(held: Mapping[str, Any], units: int, kept: int) -> dict[str, int]:
    """Those of the numbers that a module or a configuration holds that change when so many experts stay.

    Args:
        held: numbers by name.
        units: experts before.
        kept: after.
    """
    found = {n: kept for n in COUNTS if _is(held.get(n), units)}
    wanted = {n: v for n, v in ((n, held.get(n)) for n in CHOICES) if type(v) is int and kept < v <= units}
    return found | dict.fromkeys(wanted, kept)


def _is(value: Any, number: int) -> bool:
    return type(value) is int and value == number


def configurations(config: Any) -> Iterator[Any]:
    """A configuration and those that it holds."""
    yield config
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and hasattr(value, "attribute_map"):
            yield from configurations(value)


def say_experts_(config: Any, plan: Plan) -> None:
    """Let a configuration of transformers say how many experts stay, if it is the same number everywhere."""
    sizes = {(g.units, len(g.kept)) for g in plan.groups if g.experts_of is not None}
    if len(sizes) != 1:
        return
    units, kept = sizes.pop()
    for part in configurations(config):
        held = {n: getattr(part, n, None) for n in (*COUNTS, *CHOICES)}
        for name, value in changes(held, units, kept).items():
            setattr(part, name, value)
