"""Masks inside weights: which numbers of a weight stay, and the least-squares solutions that have no others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunus.errors import PlanError
from prunus.masks.layers import layer_of
from prunus.plan.plan import Plan
from prunus.proof.weightmasks import planned_masks

AT_ONCE = 2**24
"""Elements of the Gram matrices that are factored at once, 128 MiB of fp64."""


def supports(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Which numbers of each weight stay that loses some: parameter, by every name it has -> bool of its shape.

    Raises:
        PlanError: the plan's masks don't fit the model, or lie on a weight that is computed.
    """
    named = list(model.named_parameters(remove_duplicate=False)) if plan.patterns else []
    found: dict[str, Tensor] = {}
    for layer, mask in planned_masks(model, plan).items():
        weight = layer_of(model, layer).weight
        names = [name for name, held in named if held is weight]
        if not names:
            what = "its weight is computed (weight norm, another parametrization)"
            raise PlanError(f"pattern of {layer!r}", what, "make its parametrizations permanent first")
        stays = mask.layout.on_weight(mask.fixed.to(weight.device)).expand(weight.shape)
        found |= {} if bool(stays.all()) else dict.fromkeys(names, stays)
    return found


def solved_within(gram: Tensor, right: Tensor, support: Tensor) -> Tensor:
    """Solve `gram x = right` for every column by itself, with no other numbers than those of its support.

    The minimum of a quadratic form over vectors that are zero outside of a support; columns whose supports are of one
    size are factored together, as many at once as `AT_ONCE` allows.

    Args:
        gram: symmetric, positive definite, [G, P, P].
        right: [G, P, Q].
        support: bool [G, P, Q].

    Returns:
        [G, P, Q], exactly zero outside of the support.
    """
    groups, size, outputs = right.shape
    columns, rights = (t.transpose(1, 2).reshape(-1, size) for t in (support, right))
    group = torch.arange(groups, device=gram.device).repeat_interleave(outputs)
    found, sizes = torch.zeros_like(rights), columns.sum(1)
    for count in filter(None, sizes.unique().tolist()):
        alike = (sizes == count).nonzero()[:, 0]
        for some in alike.split(max(1, AT_ONCE // count**2)):
            places = columns[some].nonzero()[:, 1].reshape(len(some), count)
            here = rights[some].gather(1, places)
            if groups == 1 and bool((places == places[0]).all()):
                solution = _solution(gram[:, places[0, :, None], places[0]], here.t()[None])[0].t()
            else:
                inner = gram[group[some, None, None], places[:, :, None], places[:, None, :]]
                solution = _solution(inner, here[:, :, None])[:, :, 0]
            found[some] = found[some].scatter(1, places, solution)
    return found.reshape(groups, outputs, size).transpose(1, 2)


def _solution(gram: Tensor, right: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(gram)
    return torch.linalg.lstsq(gram, right).solution if bool(failed.any()) else torch.cholesky_solve(right, factor)
