"""The smallest network of a family that keeps a promise, shown on examples that nothing was learned from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from prunus.data.batches import Loader, Splits, as_batches
from prunus.data.dense_outputs import DenseOutputs
from prunus.data.outcomes import counted, losses_of
from prunus.errors import BudgetError, ConfigError, DataError
from prunus.learning.problem import Problem
from prunus.methods.base import Method
from prunus.pipeline.repairing import prepare
from prunus.pipeline.solve import Result, solve
from prunus.plan.budget import Budget
from prunus.plan.evidence import Evidence, fewest
from prunus.plan.promise import Promise
from prunus.plan.sequence import Found, search
from prunus.runtime.processes import distributed

SHARES = tuple(0.95**step for step in range(1, 61))
"""Budgets that are tried, as shares of the dense network's MACs, from the largest network to the smallest."""
OUTSIDE = (
    "the promise is on the network as prune made it and on examples like the held-out ones: "
    "whatever changes its weights or statistics afterwards is not covered"
)


@dataclass(frozen=True)
class Candidate:
    """A member of the family, and what the held-out examples say of it."""

    result: Result
    evidence: Evidence

    @property
    def share(self) -> float:
        """Its MACs, as a share of the dense network's."""
        return self.result.plan.after.macs / self.result.plan.before.macs


def promised(method: Method, problem: Problem) -> Result:
    """The smallest network down the budgets before the first whose promise the held-out examples do not show.

    Scores are learned once, from `Splits.train`; the order is fixed before the held-out examples are looked at, and
    what they say decides only where to stop.

    Raises:
        ConfigError: data that are no two splits, or that the promise can't be judged by.
        BudgetError: too few held-out examples, or not even the largest network is shown to keep it.
    """
    promise, data = problem.request.promise, problem.data
    if promise is None or not isinstance(data, Splits):
        what = "a promise is shown on examples that nothing was learned from, and there are none apart"
        raise ConfigError("data", what, "give data=prunus.data.Splits(train, validation), without a common example")
    loader = _held_out(problem, promise, data)
    number, whole = counted(loader, promise.metric)
    least = fewest(promise, whole=whole)
    if number < least:
        what = f"{number:,} held-out examples can't show it, even if nothing is lost on any"
        raise BudgetError(f"target {promise.text!r}", what, f"give at least {least:,}, better ten times as many")
    train, loss_fn = problem.learned_from()
    learned = replace(problem, data=train, loss_fn=loss_fn, prepared=prepare(problem)[0])
    members = (Candidate(r, _judged(problem, promise, r, loader, whole)) for r in _family(method, learned))
    found = search(members, lambda member: member.evidence.p, promise.level)
    if found.kept is None:
        raise _unshown(promise, found)
    plan = replace(found.kept.result.plan, asked=promise.text).with_notes(*_notes(promise, found))
    return replace(found.kept.result, plan=plan)


def _family(method: Method, problem: Problem) -> Iterator[Result]:
    """Networks from the largest to the smallest that the floors of the groups allow, by scores learned once."""
    scores, kept = None, None
    for share in SHARES:
        request = replace(problem.request, promise=None, budget=Budget.parse(f"macs<={100 * share:.2f}%"))
        try:
            result = solve(method, replace(problem, request=request, scores=scores))
        except BudgetError:
            if scores is None:
                raise
            return
        scores = result.scores
        problem = replace(problem, checkpoint=None)  # sixty plans and repairs are not worth keeping
        if result.plan.kept != kept:
            yield result
        kept = result.plan.kept


def _held_out(problem: Problem, promise: Promise, data: Splits) -> Loader:
    """The held-out batches, once it is clear that they can be used."""
    if data.validation is data.train:
        what = "train and validation are the same, and what was learned from examples fits them better than others"
        raise ConfigError("data", what, "hold some out: prunus.data.Splits(train, validation)")
    if promise.metric == "loss" and (not callable(problem.loss_fn) or isinstance(problem.loss_fn, DenseOutputs)):
        raise ConfigError(
            "loss_fn", "a loss of labels is promised, and there is none", "give loss_fn(outputs, targets)"
        )
    loader = as_batches(data.validation, problem.model, problem.example_inputs)
    if distributed() and not loader.same_on_all_ranks():
        what = "every process was given other held-out examples, and would come to another network"
        raise ConfigError("validation", what, "give every process the same, without a DistributedSampler")
    return loader


def _judged(problem: Problem, promise: Promise, result: Result, loader: Loader, whole: bool) -> Evidence:
    losses = losses_of(
        problem.model, result.model, loader, promise.metric, relative=promise.relative, loss_fn=problem.loss_fn
    )
    low, high = promise.span
    if losses.min() < low or losses.max() > high:
        what = f"a loss outside of {promise.low:g}..{promise.high:g} was met, so that nothing is shown"
        raise DataError("loss_fn", what, "promise a range that it never leaves")
    return Evidence(promise, losses, whole)


def _unshown(promise: Promise, found: Found[Candidate]) -> BudgetError:
    """Why not even the first network would do, and how many examples might."""
    where = f"target {promise.text!r}"
    if found.failed is None:
        return BudgetError(where, "there is no smaller network", "ignore fewer layers")
    evidence, share = found.failed.evidence, found.failed.share
    what = (
        f"not even the network with {share:.1%} of the MACs is shown to keep it on {len(evidence.losses):,} "
        f"held-out examples: {_told(evidence)}"
    )
    needed = evidence.needed()
    if needed is None:
        return BudgetError(where, what, "more examples are not likely to help: allow more, or use another method")
    return BudgetError(where, what, f"give about {max(needed, len(evidence.losses) + 1):,} examples, or allow more")


def _notes(promise: Promise, found: Found[Candidate]) -> tuple[str, ...]:
    """What was shown, of what, and what was not."""
    kept, failed = found.kept, found.failed
    assert kept is not None
    evidence = kept.evidence
    number, asked = len(evidence.losses), promise.text.partition("@")[0].strip()
    limit = _amount(promise, evidence.limit())
    notes = [
        f"{asked} is shown with {100 * promise.confidence:g} % confidence on {number:,} held-out examples; "
        f"{kept.share:.1%} of the MACs is the last of the sizes down to which it is ({found.tested} were tried)",
        f"{_told(evidence)}; at most {limit} with the same confidence, had this network alone been tested",
        OUTSIDE,
    ]
    if failed is None:
        notes.insert(2, "no smaller network was tried: the floors of the groups allow none")
    else:
        notes.insert(2, f"not shown at {failed.share:.1%} of the MACs: {_told(failed.evidence)}")
    return tuple(notes)


def _told(evidence: Evidence) -> str:
    """Counts or a mean, and the p-value."""
    promise, losses = evidence.promise, evidence.losses
    lost, won = int((losses > 0).sum()), int((losses < 0).sum())
    mean = _amount(promise, float(np.mean(losses)))
    counts = f" ({lost:,}{f' lost, {won:,} won' if promise.relative else ''})" if evidence.whole else ""
    named = {"accuracy": "wrong answers", "agreement": "answers unlike the dense network's", "loss": "loss"}
    more = " more than dense" if promise.relative else ""
    return f"{named[promise.metric]}: {mean}{more}{counts}, p = {evidence.p:.3g}"


def _amount(promise: Promise, value: float) -> str:
    return f"{value:.4g}" if promise.metric == "loss" else f"{100 * value:.2f} %"
