"""Removal with proof: cut, compare with the masked model, and put everything back if they differ."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import SurgeryError
from prunus.plan import Plan
from prunus.rewrite import rewrite
from prunus.surgery import Undo, check_fits, cut_, rescale_queries_
from prunus.verify import Verification, check_backward, difference, masked, outputs, proof_inputs, recorded_layers


def apply_(model: nn.Module, plan: Plan, example_inputs: Any = None, *, rewrite_graph: bool = True) -> nn.Module:
    """Remove what the plan removes, and prove it.

    The model itself is cut. Only if its code holds sizes that no attribute reaches (`view(-1, 2048)`), a rewritten
    captured graph is returned instead, and the model stays as it was.

    Args:
        model: the dense network the plan was made for.
        plan: what stays.
        example_inputs: inputs for the proof; random ones of the recorded shapes if absent.
        rewrite_graph: allow the rewritten graph.

    Returns:
        The model, smaller, or a new module made from its captured graph.

    Raises:
        PlanError: the plan was made for another model.
        SurgeryError: the result cannot be proven; the model is as it was.
    """
    return apply_and_verify_(model, plan, example_inputs, rewrite_graph=rewrite_graph)[0]


def apply_and_verify_(
    model: nn.Module, plan: Plan, example_inputs: Any = None, *, rewrite_graph: bool = True
) -> tuple[nn.Module, Verification]:
    """Like `apply_`, and return what was proven."""
    check_fits(model, plan)
    inputs = proof_inputs(plan, example_inputs, model)
    with masked(model, plan), _recorded(model, plan) as layers:
        reference = [outputs(model, i) for i in inputs]
    undo = cut_(model, plan)
    verification, problem = _prove(model, plan, inputs, reference, layers)
    if verification is not None:
        return model, verification
    rescaled = rescale_queries_(model, plan)
    if rescaled is not None:
        verification, _ = _prove(model, plan, inputs, reference, layers)
        if verification is not None:
            return model, verification
        rescaled()
    undo()
    if not rewrite_graph:
        raise _refusal(plan, problem)
    rewritten = rewrite(model, plan, inputs[0])
    verification, second = _prove(rewritten, plan, inputs, reference, {})
    if verification is None:
        raise _refusal(plan, f"{problem}; and as a rewritten graph: {second}")
    return rewritten, replace(verification, rewritten=True)


def cut_without_proof_(model: nn.Module, plan: Plan) -> Undo:
    """Cut the model's own tensors and prove nothing (for loading weights that were proven when they were saved)."""
    return cut_(model, plan)


def _prove(
    model: nn.Module,
    plan: Plan,
    inputs: list[Any],
    reference: list[list[Tensor]],
    layers: Mapping[str, list[Tensor]],
) -> tuple[Verification | None, str]:
    try:
        with _recorded(model, plan) as now:
            pruned = [outputs(model, i) for i in inputs]
        check_backward(model, inputs[0])
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as failure:
        return None, f"the smaller model does not run: {str(failure).strip().splitlines()[0][:200]}"
    error, tolerance = difference(reference, pruned)
    if plan.exact and not error <= tolerance:
        return None, f"its outputs differ from the masked model's by {error:.1e} (relative; {tolerance:.0e} allowed)"
    for name, before in layers.items():
        gap, tolerance = difference([before], [now[name]])
        if plan.exact and not gap <= tolerance:
            return None, f"the output of {name!r} differs from the masked model's by {gap:.1e} (relative)"
    finite = all(bool(torch.isfinite(t).all()) for batch in pruned for t in batch)
    if not finite and all(bool(torch.isfinite(t).all()) for batch in reference for t in batch):
        return None, "its outputs are not finite"
    return Verification(error if plan.exact else float("nan"), tolerance, len(inputs), plan.exact), ""


def _recorded(model: nn.Module, plan: Plan) -> AbstractContextManager[dict[str, list[Tensor]]]:
    """Outputs of the layers too, where dimensions inside heads go: there the network's output alone proves little."""
    delicate = any(g.inside_heads and len(g.kept) < g.units for g in plan.groups)
    return recorded_layers(model, plan) if delicate else nullcontext({})


def _refusal(plan: Plan, problem: str) -> SurgeryError:
    removed = [g.name for g in plan.groups if len(g.kept) < g.units]
    names = ", ".join(removed[:5]) + (f" and {len(removed) - 5} more" if len(removed) > 5 else "")
    return SurgeryError(
        f"groups {names}",
        f"{problem}; everything was rolled back",
        "put the layers concerned into ignored_layers, and report the model: this should not happen",
    )
