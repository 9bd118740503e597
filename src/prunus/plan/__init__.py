"""What stays, and at what cost: plain data and arithmetic."""

from prunus.plan.allocation import Allocation, allocate, select
from prunus.plan.budget import Budget
from prunus.plan.cost import count_cost
from prunus.plan.plan import Plan

__all__ = ["Allocation", "Budget", "Plan", "allocate", "count_cost", "select"]
