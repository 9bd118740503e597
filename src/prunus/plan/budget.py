"""Budgets: bounds on the cost of the smaller model, as text or as numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prunus.errors import BudgetError
from prunus.plan.cost import Cost
from prunus.runtime.fields import allows

RESOURCES = ("macs", "params", "weights")
SUFFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
AMOUNT = re.compile(r"(\w+)\s*<?=\s*((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([%kmgb]?)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Limit:
    """One bound: `resource` must not exceed `value`, a fraction of the dense cost if `relative`."""

    resource: str
    value: float
    relative: bool

    def __post_init__(self) -> None:
        if self.resource not in RESOURCES:
            known = ", ".join(RESOURCES)
            raise BudgetError(f"budget of {self.resource!r}", "there is no such resource", f"use one of {known}")
        if not allows(float, self.value) or self.value <= 0 or (self.relative and self.value > 1):
            what = f"the amount {self.value!r} is out of range"
            raise BudgetError(f"budget of {self.resource}", what, "give more than 0, and at most 100 %")

    def bound(self, dense: Cost) -> float:
        """The bound in absolute units."""
        return self.value * getattr(dense, self.resource) if self.relative else self.value


@dataclass(frozen=True)
class Budget:
    """Bounds that must all hold, such as `macs<=50%, params<=3M`.

    Example:
        >>> budget = prunus.Budget.parse("macs<=50%, params<=3M")
        >>> [(limit.resource, limit.value, limit.relative) for limit in budget.limits]
        [('macs', 0.5, True), ('params', 3000000.0, False)]
    """

    limits: tuple[Limit, ...]
    text: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget from text: comma-separated `RESOURCE<=AMOUNT` with RESOURCE macs, params or weights and
        AMOUNT a percentage of the dense cost (`50%`) or a number (`400K`, `3M`, `1.2G`); `=` means the same as `<=`.

        Raises:
            BudgetError: the text is not of that form.
        """
        if not isinstance(text, str):
            share = f"{100 * text:g}" if allows(float, text) and 0 < text <= 1 else "50"
            raise BudgetError(
                f"budget {text!r}", "it does not say of what", f"write budget='macs<={share}%', or params or weights"
            )
        limits = []
        for part in filter(None, (p.strip() for p in text.split(","))):
            match = AMOUNT.fullmatch(part)
            if match is None:
                raise BudgetError(
                    f"budget {part!r}", "it is not of the form RESOURCE<=AMOUNT", "write for example macs<=50%"
                )
            resource, number, suffix = match[1].lower(), float(match[2]), match[3].lower()
            relative = suffix == "%"
            try:
                limits.append(Limit(resource, number / 100 if relative else number * SUFFIX[suffix], relative))
            except BudgetError as error:
                raise BudgetError(f"budget {part!r}", error.what, error.fix) from None
        if not limits:
            raise BudgetError(f"budget {text!r}", "it names no bound", "write for example macs<=50%, params<=20%")
        return cls(tuple(limits), text)

    def excess(self, cost: Cost, dense: Cost) -> float:
        """Largest ratio of a cost to its bound; at most 1 if the budget is met."""
        return max(getattr(cost, limit.resource) / limit.bound(dense) for limit in self.limits)
