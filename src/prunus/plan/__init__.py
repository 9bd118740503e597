"""What stays, and at what cost: plain data and arithmetic."""

from prunus.plan.allocation import Allocation, allocate, select
from prunus.plan.budget import Budget
from prunus.plan.cost import count_cost
from prunus.plan.plan import Plan
from prunus.plan.promise import Promise
from prunus.plan.resources import Remains, Resource, resource

__all__ = [
    "Allocation",
    "Budget",
    "Plan",
    "Promise",
    "Remains",
    "Resource",
    "allocate",
    "count_cost",
    "resource",
    "select",
]
