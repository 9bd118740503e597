"""Removal with proof: cut, compare with the masked model, and put everything back if they differ."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from torch import nn

from prunus.errors import PruneError, SurgeryError, first_line
from prunus.plan.plan import Plan
from prunus.proof.imagesizes import try_another_size_
from prunus.proof.judge import Judge, Judgement, judge_for
from prunus.proof.observation import observe
from prunus.proof.verification import Verification
from prunus.proof.weightmasks import masks_first
from prunus.runtime.arguments import examples_in
from prunus.runtime.entry import entry
from prunus.surgery.configuration import keep_configuration_true_
from prunus.surgery.cut import Undo, check_fits, cut_, rescale_queries_
from prunus.surgery.rewrite import fixed_batch, rewrite
from prunus.surgery.rewritten import RewrittenModel, what_is_lost
from prunus.surgery.shallower import shorten_

SHORTER = "with fewer layers in its lists it computes something else"
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

    Example:
        >>> net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 8)
        >>> plan = prunus.Plan.from_kept(prunus.trace(net, x), {"0": [0, 2, 5, 7]})
        >>> prunus.apply_(net, plan, x)  # what comes back has been compared with the masked network
        Sequential(
          (0): Linear(in_features=8, out_features=4, bias=True)
          (1): ReLU()
          (2): Linear(in_features=4, out_features=4, bias=True)
        )
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
    judge = judge_for(model, plan, example_inputs)
    own = _own_class(model, plan, judge)
    if own.problem is None and own.proof is not None:
        return model, own.proof
    if not rewrite_graph:
        raise _refusal(plan, str(own.problem))
    rewritten = _rewritten(model, plan, judge, str(own.problem))
    if judge.seen is None:
        return model, _agreement(model, plan, judge, rewritten)
    only = fixed_batch(rewritten.graph)
    if only is not None:
        judge.only_batches_of(only)
    other = judge.held(rewritten)
    if other.rounding and judge.doubt():
        other = judge.held(rewritten)
    if other.problem is not None or other.proof is None:
        raise _refusal(plan, f"{own.problem}; and as a rewritten graph: {other.problem}")
    if only is not None:
        warnings.warn(
            f"the rewritten graph of {type(model).__name__} runs on batches of {only} alone: its code makes a number "
            "of the batch size, as len(x) and int(x.shape[0]) do; x.shape[0] would leave it free",
            RuntimeWarning,
            stacklevel=3,
        )
    sizes = try_another_size_(rewritten, model, plan, min(judge.inputs, key=examples_in), judge.graph)
    notes = (f"its own class does not do: {own.problem}", *what_is_lost(model, rewritten), *sizes)
    return rewritten, replace(other.proof, rewritten=True, notes=(*other.proof.notes, *notes))


def _own_class(model: nn.Module, plan: Plan, judge: Judge) -> Judgement:
    """Cut the model and hold it against the reference; it is whole again unless that went well."""
    try:
        undo = cut_(model, plan)
    except SurgeryError as refusal:
        return Judgement(refusal.what)
    done = False
    try:
        found = judge.held(model)
        rescaled = _rescaled_if_better(model, plan, judge, found)
        found = rescaled or found
        if found.rounding:  # the judge needs the dense model once more
            undo()
            judge.doubt()
            undo = cut_(model, plan)
            if rescaled is not None:
                rescale_queries_(model, plan)
            found = judge.held(model)
        done = found.problem is None and _shortened(model, plan, judge, found)
    finally:
        if not done:
            undo()
    return found if done or found.problem else replace(found, problem=SHORTER)


def _shortened(model: nn.Module, plan: Plan, judge: Judge, found: Judgement) -> bool:
    """Whether the model computes the same once lists of layers are shorter; it is as before if not."""
    undo = shorten_(model, plan.removal)
    if not undo:
        return True
    layers, judge.layers = judge.layers, False  # their names are others now
    try:
        again = judge.held(model)
    finally:
        judge.layers = layers
    if again.problem is not None:
        Undo(tuple(undo))()
    return again.problem is None


def _rescaled_if_better(model: nn.Module, plan: Plan, judge: Judge, found: Judgement) -> Judgement | None:
    """The judgement with rescaled queries, if they bring the model much nearer to the reference (and stay so)."""
    if found.proof is None or not found.gap > NOISE * found.proof.tolerance:
        return None
    undo = rescale_queries_(model, plan)
    if undo is None:
        return None
    second = judge.held(model)
    if second.gap * CLEARLY < found.gap:
        return second
    undo()
    return None


def _rewritten(model: nn.Module, plan: Plan, judge: Judge, problem: str) -> RewrittenModel:
    try:
        return rewrite(model, plan, judge.inputs[0], judge.captured)
    except PruneError as refusal:
        raise _refusal(plan, f"{problem}; and its graph can't be rewritten: {refusal.what}") from refusal
    except Exception as failure:
        raise _refusal(plan, f"{problem}; and its graph can't be rewritten: {first_line(failure)}") from failure


def _agreement(model: nn.Module, plan: Plan, judge: Judge, rewritten: RewrittenModel) -> Verification:
    """Without a reference the two constructions have to agree; the model is cut if they do."""
    undo = cut_(model, plan)
    agreed = False
    try:
        against = observe(model, plan, judge.inputs, mask=False, layers=judge.layers)
        found = judge.held(rewritten, against)
        agreed = found.problem is None
    except Exception as failure:
        found = Judgement(f"the smaller model does not run: {first_line(failure)[:200]}")
    finally:
        if not agreed:
            undo()
    if found.problem is not None or found.proof is None:
        raise _refusal(plan, f"{judge.without}; and its own code and the rewritten graph disagree: {found.problem}")
    return replace(found.proof, notes=(*found.proof.notes, str(judge.without)))


def _refusal(plan: Plan, problem: str) -> SurgeryError:
    removed = [g.name for g in plan.groups if len(g.kept) < g.units]
    names = ", ".join(removed[:5]) + (f" and {len(removed) - 5} more" if len(removed) > 5 else "")
    return SurgeryError(
        f"groups {names}",
        f"{problem}; everything was rolled back",
        "put the layers concerned into ignored_layers, and report the model: this should not happen",
    )
