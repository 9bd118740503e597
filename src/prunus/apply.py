"""Removal with proof: cut, compare with the masked model, and put everything back if they differ."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.configuration import keep_configuration_true_
from prunus.entry import entry
from prunus.errors import SurgeryError, TraceError
from prunus.plan import Plan
from prunus.rewrite import fixed_batch, rewrite
from prunus.rewritten import RewrittenModel
from prunus.surgery import Undo, check_fits, cut_, rescale_queries_
from prunus.verify import (
    TOLERANCE,
    Verification,
    check_backward,
    difference,
    masked,
    outputs,
    proof_inputs,
    recorded_layers,
)
from prunus.weightmasks import masks_first

NOISE, CLEARLY = 0.01, 4.0
"""Queries are rescaled if the gap is above so much of the tolerance, and so many times smaller with it."""


@entry()
def apply_(model: nn.Module, plan: Plan, example_inputs: Any = None, *, rewrite_graph: bool = True) -> nn.Module:
    """Remove what the plan removes, and prove it.

    The model itself is cut. Only if its code holds sizes that no attribute reaches (`view(-1, 2048)`), a rewritten
    captured graph is returned instead, and the model stays as it was. Masks inside weights are written into them, as
    zeros; values are not put on grids.

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
    smaller, _ = apply_and_verify_(model, plan, example_inputs, rewrite_graph=rewrite_graph)
    keep_configuration_true_(smaller, plan)
    return smaller


@entry()
@masks_first
def apply_and_verify_(
    model: nn.Module, plan: Plan, example_inputs: Any = None, *, rewrite_graph: bool = True
) -> tuple[nn.Module, Verification]:
    """Like `apply_`, and return what was proven."""
    check_fits(model, plan)
    inputs = proof_inputs(plan, example_inputs, model)
    twin = _twin(model, plan, inputs[0]) if rewrite_graph and not plan.exact else None
    layers: Mapping[str, list[Tensor]] = {}
    if twin is not None:
        reference = [outputs(twin, i) for i in inputs]
    else:
        with masked(model, plan), _recorded(model, plan) as layers:
            reference = [outputs(model, i) for i in inputs]
    compare = plan.exact or twin is not None
    strictness = NOISE if twin is not None and _delicate(plan) else 1.0
    undo = cut_(model, plan)
    proof = _prove(model, plan, inputs, reference, layers, compare, strictness)
    rescaled = rescale_queries_(model, plan) if compare and proof.gap > NOISE * proof.tolerance else None
    if rescaled is not None:
        second = _prove(model, plan, inputs, reference, layers, compare, strictness)
        if second.gap * CLEARLY < proof.gap:
            proof = second
        else:
            rescaled()
    if proof.problem is None:
        return model, proof.verification(plan, len(inputs))
    undo()
    if not rewrite_graph:
        raise _refusal(plan, proof.problem)
    rewritten = rewrite(model, plan, inputs[0]) if twin is None else twin
    other = _prove(rewritten, plan, inputs, reference, {}, plan.exact)
    if other.problem is not None:
        raise _refusal(plan, f"{proof.problem}; and as a rewritten graph: {other.problem}")
    only = fixed_batch(rewritten.graph)
    if only is not None:
        warnings.warn(
            f"the rewritten graph of {type(model).__name__} runs on batches of {only} alone: its code makes a number "
            "of the batch size, as len(x) and int(x.shape[0]) do; x.shape[0] would leave it free",
            RuntimeWarning,
            stacklevel=3,
        )
    return rewritten, replace(other.verification(plan, len(inputs)), rewritten=True)


def _twin(model: nn.Module, plan: Plan, example_inputs: Any) -> RewrittenModel | None:
    """The rewritten graph, where equality with the masked model can't be asked for: two constructions that must agree.

    None if the model can't be captured with a free batch size: then only running is checked, and `max_error` is NaN.
    """
    try:
        return rewrite(model, plan, example_inputs)
    except TraceError:
        return None


def cut_without_proof_(model: nn.Module, plan: Plan) -> Undo:
    """Cut the model's own tensors and prove nothing (for loading weights that were proven when they were saved)."""
    return cut_(model, plan)


@dataclass(frozen=True)
class _Proof:
    """What a comparison with the masked model found: relative errors of the outputs, and of the worst layer too."""

    problem: str | None
    error: float = float("inf")
    gap: float = float("inf")
    tolerance: float = TOLERANCE[torch.float32]

    def verification(self, plan: Plan, inputs: int) -> Verification:
        return Verification(self.error, self.tolerance, inputs, plan.exact)


def _prove(
    model: nn.Module,
    plan: Plan,
    inputs: list[Any],
    reference: list[list[Tensor]],
    layers: Mapping[str, list[Tensor]],
    compare: bool,
    strictness: float = 1.0,
) -> _Proof:
    try:
        with _recorded(model, plan) as now:
            pruned = [outputs(model, i) for i in inputs]
        check_backward(model, inputs[0])
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as failure:
        return _Proof(f"the smaller model does not run: {str(failure).strip().splitlines()[0][:200]}")
    error, tolerance = difference(reference, pruned)
    gaps = {name: difference([before], [now[name]])[0] for name, before in layers.items()}
    worst = max(gaps, key=gaps.__getitem__, default="")
    gap = max(error, gaps.get(worst, 0.0))
    problem, other = None, "masked model's" if plan.exact else "rewritten graph's"
    if compare and not error <= strictness * tolerance:
        problem = f"its outputs differ from the {other} by {error:.1e} (relative; {tolerance:.0e} allowed)"
    elif compare and not gap <= tolerance:
        problem = f"the output of {worst!r} differs from the {other} by {gap:.1e} (relative)"
    elif not _finite(pruned) and _finite(reference):
        problem = "its outputs are not finite"
    return _Proof(problem, error if compare else float("nan"), gap, tolerance)


def _finite(batches: list[list[Tensor]]) -> bool:
    return all(bool(torch.isfinite(t).all()) for batch in batches for t in batch)


def _recorded(model: nn.Module, plan: Plan) -> AbstractContextManager[dict[str, list[Tensor]]]:
    """Outputs of the layers too, where dimensions inside heads go: there the network's output alone proves little."""
    return recorded_layers(model, plan) if _delicate(plan) else nullcontext({})


def _delicate(plan: Plan) -> bool:
    return any(g.inside_heads and len(g.kept) < g.units for g in plan.groups)


def _refusal(plan: Plan, problem: str) -> SurgeryError:
    removed = [g.name for g in plan.groups if len(g.kept) < g.units]
    names = ", ".join(removed[:5]) + (f" and {len(removed) - 5} more" if len(removed) > 5 else "")
    return SurgeryError(
        f"groups {names}",
        f"{problem}; everything was rolled back",
        "put the layers concerned into ignored_layers, and report the model: this should not happen",
    )
