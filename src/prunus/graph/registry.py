"""What is known of each operation, in one place: its rule on labels, its rewriter, and what it does to zeros."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from prunus.graph.engine import Engine, Result
from prunus.graph.resizing import Rewriter
from prunus.graph.zeros import Zeros

Labelling = Callable[[Engine, fx.Node], Result]


@dataclass(frozen=True)
class Rule:
    """All that the analysis, the rewritten graph and the proof ask of an operation.

    Attributes:
        label: what the operation does to units: (engine, node) -> the labels of its result.
        rows: `label` knows of whole rows (heads); to other rules they are locked.
        rewrite: brings the sizes among the call's arguments in line with what stays; None if it holds none.
        zeros: which elements of its result are zero wherever a layer's outputs are; None if that isn't known.
        ignores_zeros: what it makes of its other elements is the same however many zeros stand where units were.
        sides: for a product of two operands, which arguments those are (of an einsum's operands).
        training: which argument says that the model trains.
    """

    label: Labelling
    rows: bool = False
    rewrite: Rewriter | None = None
    zeros: Zeros | None = None
    ignores_zeros: bool = False
    sides: tuple[int, int] | None = None
    training: int | None = None

    @property
    def help(self) -> str:
        """One line: what the operation does to units."""
        return " ".join((self.label.__doc__ or "").split("\n\n")[0].split())


RULES: dict[str, Rule] = {}
"""By the operation's name, without overload and trailing underscore; torch's own without namespace."""


def rule(
    *names: str,
    rows: bool = False,
    rewrite: Rewriter | None = None,
    zeros: Zeros | None = None,
    ignores_zeros: bool = False,
    sides: tuple[int, int] | None = None,
    training: int | None = None,
) -> Callable[[Labelling], Labelling]:
    """Register a function as the rule of the named aten operations; its first line of documentation is their help.

    Operations that share a function and differ in what else is known of them have a decorator each.

    Args:
        names: without overload, without trailing underscore.
        rows: see `Rule`, as for all others.
        rewrite: a function of `graph/resizing.py`, or one beside the rule.
        zeros: a function of `graph/zeros.py`.
        ignores_zeros: see `Rule`.
        sides: see `Rule`.
        training: see `Rule`.

    Raises:
        ValueError: two rules for one operation.
    """

    def register(function: Labelling) -> Labelling:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for {name}")
            RULES[name] = Rule(function, rows, rewrite, zeros, ignores_zeros, sides, training)
        return function

    return register
