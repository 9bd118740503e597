"""Is a method of masks one? Exactly k of n, the right ones, by the seed alone, and a plan that makes them again."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.learning.findings import LearnedMasks
from prunus.masks.layers import layer_of
from prunus.methods.base import MaskMethod
from prunus.pipeline.prune import prune
from prunus.pipeline.solve import Result
from prunus.proof.apply import apply_
from prunus.testing.demand import demand
from prunus.testing.planted import GROUP, INPUTS, planted, planted_model

KEPT = INPUTS // 2
PATTERN = {GROUP: f"weight {KEPT}/{INPUTS}"}


def check_masks(name: str, method: MaskMethod) -> None:
    """Check what a method keeps of weights of which one in every row carries all, and the others are zero.

    Args:
        name: of its class, for what is said.
        method: with settings that take seconds, of a frozen network.

    Raises:
        AssertionError: with what is wrong, in a sentence.
    """
    found = []
    for other in (1, 2):
        torch.manual_seed(other)
        random.seed(other)
        np.random.seed(other)
        dense = planted_model()
        found.append(_masked(dense, method))
        changed = _different(dense.state_dict(), planted_model().state_dict())
        demand(not changed, f"{name} changes the network that it is given: {', '.join(changed)}")
    result, again = found
    masks = _masks(name, result)
    weight = layer_of(planted_model(), GROUP).weight.detach()
    mask = masks.masks[GROUP]
    shaped = mask.dtype == torch.bool and mask.shape == weight.shape
    demand(shaped, f"the mask of {name} is {mask.dtype} {list(mask.shape)}, it must be bool {list(weight.shape)}")
    counts = sorted(set(mask.sum(1).tolist()))
    demand(counts == [KEPT], f"{name} keeps {counts} elements of a row, it was asked for exactly {KEPT}")
    lost = int((weight.abs().masked_fill(mask, 0).sum(1) > 0).sum())
    told = f"{name} keeps zeros and lets go of the only weight that carries anything, in {lost} of {len(mask)} rows"
    demand(lost == 0, f"{told}: a larger logit must mean keep")
    for layer, likely in masks.keep_probability.items():
        summed = bool(((likely.sum(1) - KEPT).abs() < 1e-3).all())
        told = f"{name}: keep_probability of {layer} must lie between 0 and 1, and sum to {KEPT} in each row"
        demand(summed and bool(((likely >= 0) & (likely <= 1)).all()), told)
    same = torch.equal(mask, _masks(name, again).masks[GROUP])
    same = same and not _different(result.model.state_dict(), again.model.state_dict())
    demand(same, f"{name}: the same seed gave two results; nothing but the seed may decide, no global random state")
    remade = apply_(planted_model(), result.plan, planted().examples)
    # Running statistics may be those of the masked network.
    different = _different(dict(remade.named_parameters()), dict(result.model.named_parameters()))
    demand(not different, f"{name}: its plan, applied to the dense network, makes another: {', '.join(different)}")


def _masked(model: nn.Module, method: MaskMethod) -> Result:
    problem = planted()
    options = {"data": list(problem.batches[:4]), "loss_fn": F.mse_loss, "seed": 5, "progress": False}
    options["repair"] = False  # weights that are refitted afterwards would hide what the method did to them
    return prune(model, problem.examples, method=method, target=PATTERN, **options)  # type: ignore[arg-type]


def _masks(name: str, result: Result) -> LearnedMasks:
    found = result.findings
    demand(isinstance(found, LearnedMasks), f"{name} found no masks, but {type(found).__name__}")
    assert isinstance(found, LearnedMasks)
    return found


def _different(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> list[str]:
    return [n for n, t in one.items() if n not in two or not torch.equal(t, two[n])]
