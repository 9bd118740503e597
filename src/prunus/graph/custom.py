"""Rules for operations that this package does not know: say which known kind they are like, or write a rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from prunus.errors import ConfigError
from prunus.graph.engine import operation_name
from prunus.graph.registry import RULES, Labelling, Rule
from prunus.graph.resizing import Rewriter
from prunus.graph.rules.elementwise import pointwise, same
from prunus.graph.rules.reduction import pool
from prunus.graph.zeros import stay

Kind = Literal["elementwise", "same", "channels"]
KINDS = {
    "elementwise": Rule(pointwise, rows=True, ignores_zeros=True),
    "same": Rule(same, rows=True, ignores_zeros=True),
    "channels": Rule(pool),
}


def register_operation(
    operator: str,
    like: Kind | Labelling,
    *,
    rows: bool | None = None,
    rewrite: Rewriter | None = None,
    zero_stays_zero: bool = False,
    ignores_zeros: bool | None = None,
    training: int | None = None,
) -> None:
    """Tell the analysis what a custom operation does to units. A wrong answer is found out by the proof.

    Args:
        operator: name as registered with torch, `namespace::name`.
        like: `elementwise` (its tensors broadcast against each other), `same` (the output has the first tensor's units,
            each computed from itself alone), `channels` (positions are mixed, channels in dimension 1 pass), or a rule
            of your own: (engine, node) -> value, as in `prunus.graph.rules`. The first line of its documentation is
            the operation's help.
        rows: a rule of your own knows of whole rows (heads); to others they are locked.
        rewrite: for an operation with sizes of units among its arguments, what becomes of those where the model's code
            holds them: a function of one `prunus.graph.resizing.Resizing` that changes its `arguments`.
        zero_stays_zero: where the first tensor is zero the result is zero at the same place, so that a gate may stand
            before it.
        ignores_zeros: what it makes of its other elements is the same however many zeros stand where units were, as
            is known of `elementwise` and `same`.
        training: which argument says that the model trains; it follows `train()` and `eval()` in a rewritten graph.

    Raises:
        ConfigError: an operator that torch does not know, or another word.

    Example:
        >>> torch.library.define("mylib::scaled", "(Tensor x) -> Tensor")
        >>> torch.library.impl("mylib::scaled", "CompositeExplicitAutograd", lambda x: 2 * x)
        >>> prunus.register_operation("mylib::scaled", like="elementwise")
    """
    namespace, _, name = operator.partition("::")
    if not name or not hasattr(getattr(torch.ops, namespace), name):
        raise ConfigError(
            f"operation {operator!r}", "torch has none of that name", "register it first: namespace::name"
        )
    if not callable(like) and like not in KINDS:
        raise ConfigError(f"operation {operator!r}", f"like={like!r} is not known", f"use one of {', '.join(KINDS)}")
    known = KINDS[like] if not callable(like) else _like(like)
    RULES[operation_name(operator)] = replace(
        known,
        rows=known.rows if rows is None else rows,
        rewrite=rewrite,
        zeros=stay if zero_stays_zero else None,
        ignores_zeros=known.ignores_zeros if ignores_zeros is None else ignores_zeros,
        training=training,
    )


def _like(function: Labelling) -> Rule:
    """A rule of one's own; one of this package's functions knows of rows and zeros what it always does."""
    known = [found for found in RULES.values() if found.label is function]
    return Rule(function, known[0].rows, ignores_zeros=all(r.ignores_zeros for r in known)) if known else Rule(function)
