"""What smaller models are held against, and the judgement: made before anything is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import DataError, PruneError, SurgeryError, first_line
from prunus.graph.grouping import Graph
from prunus.plan.plan import Plan
from prunus.proof.comparison import TOLERANCE, compare, describe, has_nan
from prunus.proof.inputs import proof_inputs
from prunus.proof.masked import units_pass_through
from prunus.proof.noise import refuse_noise, refuse_undefined
from prunus.proof.observation import Observed, observe, observe_graph
from prunus.proof.power import named_layers, unseen_readers, weak_readers
from prunus.proof.reference import MaskedGraph
from prunus.proof.verification import (
    EACH_OTHER,
    MASKED,
    MASKED_STATISTICS,
    Verification,
)
from prunus.runtime.arguments import examples_in
from prunus.runtime.calling import check_backward
from prunus.runtime.precision import dtype_name
from prunus.surgery.rewrite import captured_freely, fixed_batch

LOW = TOLERANCE[torch.float32]
"""Formats that are allowed more than this are low: what decides is then computed in fp64."""
NEARLY = 1e3
"""Differences up to so many tolerances may be rounding, and are looked at in fp64."""
ROUNDINGS = 8.0
"""How many roundings of the largest number, times the root of the terms of a sum, the smallest channels are granted."""


@dataclass(frozen=True)
class Judgement:
    """What holding a smaller model against the reference gave; `gap` is that of the worst layer too."""

    problem: str | None
    error: float = float("inf")
    gap: float = float("inf")
    proof: Verification | None = None
    rounding: bool = False


@dataclass
class Judge:
    """The reference of a proof, and what it can tell.

    Attributes:
        model: the dense model (to be cut later).
        plan: what goes.
        inputs: batches.
        graph: the masked graph with statistics over what stays, for inexact plans.
        captured: the free capture that it was made from.
        seen: what the reference computes; None if none could be made.
        without: why there is no reference.
        doubled: the same in fp64, where formats are low; later where rounding is in doubt.
        layers: compare what layers make too.
        unseen: readers of which a wrong cut would not be seen.
        notes: remarks for the verification.
    """

    model: nn.Module
    plan: Plan
    inputs: list[Any]
    graph: MaskedGraph | None = None
    captured: Graph | None = None
    seen: Observed | None = None
    without: str | None = None
    doubled: Observed | None = None
    layers: bool = False
    unseen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def observed(self, inputs: Sequence[Any], *, precise: bool = False) -> Observed:
        """The reference's own run; the model has to be dense."""
        if self.graph is not None:
            return observe_graph(self.graph, inputs, layers=self.layers, precise=precise)
        return observe(self.model, self.plan, inputs, mask=True, layers=self.layers, precise=precise)

    def only_batches_of(self, size: int) -> None:
        """Leave out batches of other sizes, on which a construction doesn't run, if any of this one remain."""
        stay = [number for number, batch in enumerate(self.inputs) if examples_in(batch, none=0) == size]
        stay = stay or list(range(len(self.inputs)))
        self.inputs = [self.inputs[number] for number in stay]
        for seen in (self.seen, self.doubled):
            if seen is not None:
                seen.outputs = [seen.outputs[number] for number in stay]
                seen.layers = [seen.layers[number] for number in stay]

    def doubt(self) -> bool:
        """Make the reference in fp64 while the model is dense. False if its code allows no fp64."""
        if self.doubled is None:
            try:
                self.doubled = self.observed(self.inputs, precise=True)
            except Exception as failure:
                self.notes += (f"fp64 is not possible ({first_line(failure)}): the bound is that of the format",)
                return False
        return True

    def held(self, candidate: nn.Module, against: Observed | None = None) -> Judgement:
        """Hold a smaller model against the reference, or against another construction."""
        reference = against if against is not None else self.doubled or self.seen
        precise = against is None and self.doubled is not None
        run = {"mask": False, "layers": self.layers}
        try:
            now = observe(candidate, self.plan, self.inputs, precise=precise, **run)
            check_backward(candidate, self.inputs[0])
            native = observe(candidate, self.plan, self.inputs[:1], **run) if precise else now
        except Exception as failure:
            return Judgement(f"the smaller model does not run: {first_line(failure)[:200]}")
        if reference is None:
            return Judgement(self.without)
        odd = next((n for batch in native.outputs for n in [has_nan(batch)] if n is not None), None)
        if odd is not None:
            return Judgement(f"its outputs are not finite: {odd} holds NaN")
        return self._compared(reference, now, EACH_OTHER if against is not None else self._name())

    def _name(self) -> str:
        return MASKED if self.graph is None else MASKED_STATISTICS

    def _comparable(self, layer: str, whole: list[Tensor], smaller: list[Tensor]) -> bool:
        """True if what a layer made lies at the same places in both."""
        if len(whole) != len(smaller):
            return False
        module = self.model.get_submodule(layer)
        return not any(units_pass_through(module, a, b) for a, b in zip(whole, smaller, strict=True))

    def _compared(self, reference: Observed, now: Observed, name: str) -> Judgement:
        coarse = max(reference.coarsest, now.coarsest, key=lambda d: TOLERANCE.get(d, LOW))
        tolerance = TOLERANCE.get(coarse, LOW)
        in_doubt = self.doubled is None and not self.notes
        floor = (1.0 if in_doubt else ROUNDINGS * _terms(self.model) ** 0.5) * torch.finfo(coarse).eps / tolerance
        outer = compare(reference.outputs, now.outputs, floor)
        layers = [(a, b) for a, b in zip(reference.layers, now.layers, strict=True)]
        both = [{n for n in a if n in b and self._comparable(n, a[n], b[n])} for a, b in layers]
        inner = compare(
            [named_layers((n, a[n]) for n in sorted(s)) for (a, _), s in zip(layers, both, strict=True)],
            [named_layers((n, b[n]) for n in sorted(s)) for (_, b), s in zip(layers, both, strict=True)],
            floor,
        )
        errors = {**outer.errors, **inner.errors}
        worst = max(errors, key=errors.__getitem__, default="")
        gap = max(outer.error, inner.error)
        problem = outer.problem or inner.problem
        if problem is None and not errors:
            problem = "nothing was compared: no output and no layer has floating-point numbers"
        elif problem is None and not gap <= tolerance:
            problem = f"{worst} differs from the {name} by {gap:.1e} (of its channel; {tolerance:.0e} allowed)"
        first = next(iter(reference.outputs), {})
        compared = [describe(n, first[n]) for n in first if n in outer.errors or n in outer.equal]
        proof = Verification(
            max_error=gap,
            tolerance=tolerance,
            inputs=len(self.inputs),
            exact=self.plan.exact,
            reference=name,
            precision=dtype_name(coarse),
            batches=tuple(examples_in(batch, none=0) for batch in self.inputs),
            compared=(*compared, *inner.errors),
            errors=errors,
            unseen=self.unseen,
            notes=self.notes,
        )
        near = (not outer.problem and not inner.problem and gap < NEARLY * tolerance) or "other numbers" in str(problem)
        return Judgement(problem, outer.error, gap, proof, rounding=bool(problem and errors and near and in_doubt))


def judge_for(model: nn.Module, plan: Plan, example_inputs: Any) -> Judge:
    """The reference for a plan, made while the model is dense.

    Raises:
        DataError: the model does not run on the example inputs.
        SurgeryError: its outputs differ from run to run, or hold NaN, so that nothing can be proven.
    """
    judge = Judge(model, plan, proof_inputs(plan, example_inputs, model))
    judge.inputs, masked_model = _usable(model, plan, judge.inputs)
    if plan.exact:
        judge.seen = masked_model
    else:
        _third_opinion(judge)
    again = judge.seen or masked_model
    _check_noise(judge, again)
    tolerance = TOLERANCE.get(again.coarsest, LOW)
    floor = torch.finfo(again.coarsest).eps / tolerance
    smallest = min(judge.inputs, key=examples_in)
    if not any(t.is_floating_point() or t.is_complex() for t in again.outputs[0].values()):
        judge.layers = True
    weak = weak_readers(model, plan, smallest, tolerance)
    if weak and not judge.layers:
        weak = unseen_readers(model, plan, smallest, weak, tolerance, floor, layers=False)
    judge.layers = judge.layers or bool(weak) or any(g.inside_heads and len(g.kept) < g.units for g in plan.groups)
    unseen = unseen_readers(model, plan, smallest, weak, tolerance, floor, layers=True)
    judge.unseen = tuple(dict.fromkeys(plan.masked[number].module for number in unseen))
    if judge.seen is not None and judge.layers:
        judge.seen = judge.observed(judge.inputs)
    if judge.seen is not None and tolerance > LOW:
        judge.doubt()
    return judge


def _usable(model: nn.Module, plan: Plan, inputs: list[Any]) -> tuple[list[Any], Observed]:
    """The batches that the masked model runs on: code may take one batch size alone, or no numbers below zero."""
    usable, all_seen = [], Observed()
    for number, batch in enumerate(inputs):
        try:
            seen = observe(model, plan, [batch], mask=True, layers=False)
        except Exception as failure:
            if not number:
                raise _not_running(model, plan, batch, failure) from failure
            continue
        if (odd := has_nan(seen.outputs[0])) is not None:
            if not number:
                raise refuse_undefined(model, batch, odd)
            continue
        usable.append(batch)
        all_seen.outputs += seen.outputs
        all_seen.layers += seen.layers
        all_seen.coarsest = max(all_seen.coarsest, seen.coarsest, key=lambda dtype: TOLERANCE[dtype])
    return usable, all_seen


def _not_running(model: nn.Module, plan: Plan, batch: Any, failure: Exception) -> PruneError:
    """Whether it is the model that does not run on a batch, or the model with zeros in the place of what goes."""
    try:
        observe(model, plan, [batch], mask=False, layers=False)
    except Exception as dense:
        what, fix = (
            f"the dense model does not run on them: {first_line(dense)}",
            "pass inputs as its forward takes them",
        )
        return DataError("example_inputs", what, fix)
    what = f"with zeros in the place of what goes the model does not run: {first_line(failure)}"
    return SurgeryError(type(model).__name__, what, "its code looks at values; ignore the layers that it looks at")


def _check_noise(judge: Judge, seen: Observed) -> None:
    first = judge.inputs[0]
    again = judge.observed([first]) if judge.seen is not None else observe(
        judge.model, judge.plan, [first], mask=True, layers=False
    )  # fmt: skip
    tolerance = TOLERANCE.get(seen.coarsest, LOW)
    apart = compare(seen.outputs[:1], again.outputs, torch.finfo(seen.coarsest).eps / tolerance)
    if apart.problem is not None or apart.error > tolerance:
        raise refuse_noise(judge.model, first)


def _third_opinion(judge: Judge) -> None:
    """The reference of an inexact plan, from a capture with a batch size that is free where it can be."""
    try:
        judge.captured = captured_freely(judge.model, judge.plan, judge.inputs[0])
        judge.graph = MaskedGraph(judge.captured, judge.plan, judge.model)
        program = judge.captured.program
        only = fixed_batch(program.graph, program.graph_signature.user_inputs)
        if only is not None:
            judge.inputs = [i for i in judge.inputs if examples_in(i, none=0) == only] or judge.inputs[:1]
        judge.seen = judge.observed(judge.inputs)
    except PruneError as refusal:
        judge.graph, judge.without = None, f"{refusal.where}: {refusal.what}"
    except Exception as failure:
        judge.graph, judge.without = None, f"no reference can be made: {first_line(failure)}"


def _terms(model: nn.Module) -> int:
    """The longest sum that a stored weight makes."""
    return max((p[0].numel() for p in model.parameters() if p.dim() > 1 and len(p)), default=1)
