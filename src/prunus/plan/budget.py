"""Budgets: bounds on the cost of the smaller model, as text or as numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prunus.errors import BudgetError
from prunus.plan.cost import Cost
from prunus.plan.resources import GAUGED, RESOURCES
from prunus.plan.setup import Setup
from prunus.runtime.fields import allows

AMOUNT = re.compile(
    r"(\w+)(?:@([\w=/]+))?\s*<?=\s*((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(%|[a-z]*)", re.ASCII | re.IGNORECASE
)


@dataclass(frozen=True)
class Limit:
    """One bound: `resource` must not exceed `value`, a fraction of the dense cost if `relative`.

    What is measured and not counted is measured in a `setup`.
    """

    resource: str
    value: float
    relative: bool
    setup: Setup | None = None

    def __post_init__(self) -> None:
        if self.resource not in RESOURCES:
            known = ", ".join(sorted(RESOURCES))
            raise BudgetError(f"budget of {self.resource!r}", "there is no such resource", f"use one of {known}")
        if not allows(float, self.value) or self.value <= 0 or (self.relative and self.value > 1):
            what = f"the amount {self.value!r} is out of range"
            raise BudgetError(f"budget of {self.resource}", what, "give more than 0, and at most 100 %")
        if self.resource in GAUGED:
            object.__setattr__(self, "setup", self.setup or Setup())
        elif self.setup is not None:
            what, fix = (
                "it is counted, and is the same however the network is run",
                "leave out what stands behind the @",
            )
            raise BudgetError(f"budget of {self.resource}", what, fix)

    def as_share(self) -> str:
        """Advice to write a percentage, where a plain number up to 100 may have been meant as one; or nothing."""
        return "" if self.relative or self.value > 100 else f"write {self.resource}<={self.value:g}% for a share; "

    def bound(self, dense: Cost) -> float:
        """The bound in absolute units."""
        return self.value * self.of(dense) if self.relative else self.value

    def of(self, cost: Cost) -> float:
        """How much of the bounded resource a cost has.

        Raises:
            BudgetError: it is one that was not measured of this network.
        """
        if self.resource not in cost:
            what, fix = f"it is not known of this network ({RESOURCES[self.resource].help})", "measure it first"
            raise BudgetError(f"budget of {self.resource}", what, fix)
        return cost[self.resource]


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
        """Read a budget from text: comma-separated `RESOURCE<=AMOUNT` with RESOURCE macs, params, weights or another
        that is registered (`plan/resources.py`) and AMOUNT a percentage of the dense cost (`50%`) or a number in one
        of the resource's units (`400K`, `3M`, `1.2G`); `=` means the same as `<=`. What is measured has a unit of its
        own (`latency<=5ms`, `memory<=20MB`), and how it is run may stand behind an `@`: `latency@openvino/threads=2`,
        `memory@batch=8` (see `plan.setup`); without it is ONNX Runtime, one example, one thread.

        Raises:
            BudgetError: the text is not of that form.
        """
        if not isinstance(text, str):
            share = f"{100 * text:g}" if allows(float, text) and 0 < text <= 1 else "50"
            others = " or ".join(name for name in sorted(RESOURCES) if name != "macs")
            fix = f"write 'macs<={share}%', or {others}"
            raise BudgetError(f"budget {text!r}", "it does not say of what", fix)
        limits = []
        for part in filter(None, (p.strip() for p in text.split(","))):
            match = AMOUNT.fullmatch(part)
            if match is None:
                raise BudgetError(
                    f"budget {part!r}", "it is not of the form RESOURCE<=AMOUNT", "write for example macs<=50%"
                )
            try:
                setup = None if match[2] is None else Setup.parse(match[2].lower())
                limits.append(_limit(match[1].lower(), float(match[3]), match[4].lower(), setup))
            except BudgetError as error:
                raise BudgetError(f"budget {part!r}", error.what, error.fix) from None
        if not limits:
            raise BudgetError(f"budget {text!r}", "it names no bound", "write for example macs<=50%, params<=20%")
        setups: dict[str, set[Setup | None]] = {}
        for limit in limits:
            setups.setdefault(limit.resource, set()).add(limit.setup)
        if twice := [name for name, found in setups.items() if len(found) > 1]:
            what = f"{twice[0]} can be measured in one way only, and {len(setups[twice[0]])} are named"
            raise BudgetError(f"budget {text!r}", what, "write the same behind every @")
        return cls(tuple(limits), text)

    def absolute(self, dense: Cost) -> Budget:
        """The same bounds in absolute units."""
        return Budget(tuple(Limit(x.resource, x.bound(dense), relative=False) for x in self.limits), self.text)

    def excess(self, cost: Cost, dense: Cost) -> float:
        """Largest ratio of a cost to its bound; at most 1 if the budget is met."""
        return max(limit.of(cost) / limit.bound(dense) for limit in self.limits)


def _limit(resource: str, number: float, unit: str, setup: Setup | None) -> Limit:
    if unit == "%":
        return Limit(resource, number / 100, relative=True, setup=setup)
    units = RESOURCES[resource].units if resource in RESOURCES else {unit: 1.0}  # the limit refuses the name
    if unit not in units:
        known = ", ".join(repr(u) for u in units if u)
        what = f"{unit!r} is no unit of {resource}" if unit else f"{resource} has no amount without a unit"
        fix = f"write a percentage of the dense cost, or a number with {known}"
        raise BudgetError(f"budget of {resource}", what, fix)
    return Limit(resource, number * units[unit], relative=False, setup=setup)
