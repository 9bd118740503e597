"""Copies of a model that holds tensors made by a forward pass."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def copied(model: Module) -> Module:
    """A deep copy, of a model too that keeps results of a forward pass as attributes (masked weights, features).

    torch refuses to copy what has a gradient function; in the copy such a tensor is the same numbers without one.

    Args:
        model: the network; not touched.
    """
    held: list[Any] = [vars(module) for module in model.modules()]
    leaves = [t for t in torch.utils._pytree.tree_leaves(held) if isinstance(t, Tensor) and not t.is_leaf]
    return copy.deepcopy(model, {id(t): t.detach().clone() for t in leaves})
