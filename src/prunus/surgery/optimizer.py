"""An optimiser for the smaller model that goes on where the dense model's optimiser stood."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import PlanError
from prunus.plan.plan import Plan
from prunus.runtime.entry import entry
from prunus.surgery.cut import edited
from prunus.surgery.experts import renumbered
from prunus.surgery.shallower import names_after


@entry()
def carry_optimizer(
    optimizer: torch.optim.Optimizer, dense: nn.Module, pruned: nn.Module, plan: Plan
) -> torch.optim.Optimizer:
    """A new optimiser of the same class: same options, state (momenta, second moments, steps) cut as the weights were.

    Args:
        optimizer: over parameters of `dense`; not touched.
        dense: the model before removal (`prune` leaves it as it is; keep a copy before `apply_`).
        pruned: the model after, of its own class or rewritten.
        plan: what was removed.

    Returns:
        The optimiser over the parameters of `pruned`, in the same groups, without those of blocks that went.
        Parameters that the optimiser does not hold stay out.

    Raises:
        PlanError: a parameter is not the dense model's, or its state does not fit the plan.

    Example:
        >>> import copy
        >>> dense, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 8)
        >>> optimizer = torch.optim.Adam(dense.parameters())
        >>> dense(x).sum().backward()
        >>> optimizer.step()
        >>> plan = prunus.Plan.from_kept(prunus.trace(dense, x), {"0": range(4)})
        >>> small = prunus.apply_(copy.deepcopy(dense), plan, x)
        >>> carried = prunus.carry_optimizer(optimizer, dense, small, plan)
        >>> carried.state[small[0].weight]["exp_avg"].shape
        torch.Size([4, 8])
    """
    names = {id(p): n for n, p in dense.named_parameters()}
    now = renumbered(names_after(dense, plan.removal), plan)
    smaller = dict(pruned.named_parameters())
    groups: list[dict[str, Any]] = []
    state: dict[Tensor, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        own = []
        for parameter in group["params"]:
            name = names.get(id(parameter))
            if name in plan.removal.tensors:
                continue
            if name is None or now[name] not in smaller:
                where = f"parameter of shape {tuple(parameter.shape)}" if name is None else f"parameter {name!r}"
                raise PlanError(where, "it is in the optimiser, but not in both models", "pass the models of this plan")
            own.append(smaller[now[name]])
            old = optimizer.state.get(parameter, {})
            state[smaller[now[name]]] = {k: _cut(v, parameter, name, plan) for k, v in old.items()}
        groups.append({**group, "params": own})
    accepted = inspect.signature(type(optimizer)).parameters
    made = type(optimizer)(groups, **{k: v for k, v in optimizer.defaults.items() if k in accepted})
    made.state.update({p: s for p, s in state.items() if s})
    return made


def _cut(value: Any, parameter: Tensor, name: str, plan: Plan) -> Any:
    """What belongs to every element is cut as the parameter was; the rest is copied."""
    if not isinstance(value, Tensor):
        return value
    edit = plan.tensors.get(name)
    if edit is None or value.shape != parameter.shape or not value.dim():
        return value.clone()
    if tuple(value.shape) != tuple(edit.shape):
        what = f"its state is {tuple(value.shape)}, the plan was made for {tuple(edit.shape)}"
        raise PlanError(f"parameter {name!r}", what, "pass the dense model that the plan was made for")
    return edited(value, edit)
