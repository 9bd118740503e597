"""Rules for operations that this package does not know: say which known kind they are like, or write a rule."""

from __future__ import annotations

from typing import Literal

import torch

from prunus.errors import ConfigError
from prunus.graph.engine import RULES, Rule, operation_name
from prunus.graph.rules.elementwise import pointwise, same
from prunus.graph.rules.reduction import pool

Kind = Literal["elementwise", "same", "channels"]
KINDS: dict[str, Rule] = {"elementwise": pointwise, "same": same, "channels": pool}


def register_operation(operator: str, like: Kind | Rule) -> None:
    """Tell the analysis what a custom operation does to units. A wrong answer is found out by the proof.

    Args:
        operator: name as registered with torch, `namespace::name`.
        like: `elementwise` (its tensors broadcast against each other), `same` (the output has the first tensor's units,
            each computed from itself alone), `channels` (positions are mixed, channels in dimension 1 pass), or a rule
            of your own: (engine, node) -> value, as in `prunus.graph.rules`.

    Raises:
        ConfigError: an operator that torch does not know, or another word.

    Example:
        >>> prunus.register_operation("mylib::swish_and_scale", like="elementwise")  # doctest: +SKIP
    """
    namespace, _, name = operator.partition("::")
    if not name or not hasattr(getattr(torch.ops, namespace), name):
        raise ConfigError(
            f"operation {operator!r}", "torch has none of that name", "register it first: namespace::name"
        )
    if not callable(like) and like not in KINDS:
        raise ConfigError(f"operation {operator!r}", f"like={like!r} is not known", f"use one of {', '.join(KINDS)}")
    rule = like if callable(like) else KINDS[like]
    RULES[operation_name(operator)] = rule
