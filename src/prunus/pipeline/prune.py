"""`prune()`: one door for units and for weights. Asked, refused or analysed, solved, proven."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from prunus.data.batches import Splits
from prunus.data.datasets import DataSource
from prunus.data.fitting import learned_by
from prunus.data.given import split_up
from prunus.errors import ConfigError
from prunus.files.stagefile import Checkpoint
from prunus.graph.trace import trace
from prunus.layers.submodules import Ignored
from prunus.learning.problem import Problem
from prunus.masks.patterns import check_patterns
from prunus.methods.base import Method
from prunus.methods.registry import resolve
from prunus.pipeline.former import OPENED, RESUMED, TARGET
from prunus.pipeline.meeting import check_runtimes, with_measured
from prunus.pipeline.promised import promised
from prunus.pipeline.solve import Result, solve
from prunus.plan.allocation import Allocation
from prunus.plan.request import Allow, Target, allowed, requested
from prunus.refit.config import RepairConfig
from prunus.runtime.copies import check_copyable
from prunus.runtime.entry import entry
from prunus.runtime.fields import as_seed
from prunus.runtime.renamed import renamed
from prunus.runtime.seeds import start_at

__all__ = ["Result", "prune"]


@renamed(TARGET, OPENED, RESUMED)
@entry(unchanged=True)
def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    method: Method | str = "dirichlet",
    target: Target | None = None,
    data: Iterable[Any] | Splits | DataSource | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    ignored_layers: Sequence[Ignored] = (),
    allow: Sequence[Allow] = (),
    allocation: Allocation | None = None,
    repair: bool | RepairConfig = True,
    seed: int = 0,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
) -> Result:
    """Make a trained network smaller; the given model is not touched.

    Args:
        model: the trained network.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments, batch first.
        method: a method object, or a text that `prunus.methods.resolve` takes: a name (`dirichlet`, `l1`, `taylor`,
            ...), `FILE.py:Class` or `package.module:Class`; of units, or of weights.
        target: how much goes. Of units: bounds on the cost, such as `"macs<=50%"` or `"macs<=50%, params<=20%"`, or on
            what is measured, `"latency@onnx<=60%"` or `"memory<=20MB"` (see `plan.budget.Budget.parse`); or a number,
            the fraction of all units that goes; or units to keep by group name, `{"conv1": 8}`: groups that are not
            named stay whole; or how little may be lost, `"accuracy>=dense-1%@95%"`, see below. Of weights: a pattern
            for all layers but the last (and a first convolution), such as `"weight 10%"` or `"2:4"`, in place of the
            method's own; or one by layer, `{"fc1": "weight 5%"}`.
        data: batches, to be looped over several times: (inputs, targets), (x1, x2, y), dicts or inputs alone, see
            `prunus.data.as_batches`; only methods that look at weights alone need none. `prunus.data.Splits`, or a
            pair of loaders or data sets, adds others, on which methods of weights compare the masks they draw, and a
            promise is shown. A `DataSource` brings its loss too.
        loss_fn: `loss_fn(outputs, targets)` -> mean loss, a function or a module; gradient criteria ask for sums where
            it has a `reduction`. None takes the loss that the model itself returns for batches that are dicts, and the
            distance from the dense network's own outputs for batches without targets: nothing needs labels then.
            `prunus.data.DenseOutputs()` takes these whatever targets there are. A note in the plan says so.
        ignored_layers: modules, module types or name globs whose output units, or weights, stay.
        allow: what goes beyond, or stays within, the ordinary:
            `head_dims`: also remove dimensions inside attention heads, the same number in each: of values, and of
            queries and keys (in pairs where rotary positions turn them). Few classes take keys and values of unequal
            widths: where a layer keeps different shares of the two, expect a rewritten graph.
            `inexact`: also remove units across which a normalisation takes statistics (the stream of a transformer).
            Removal then differs from masking by definition: what is left is held against the masked network whose
            normalisations take statistics of what stays. Recover afterwards.
            `follow_branches`: as for `trace`.
            `blocks`: also remove what lies on one side of a residual sum (a block of a ResNet, an attention, a
            feed-forward part, a whole layer), see `planned_with_blocks`. The order in which blocks go is measured, so
            there have to be data.
            `experts`: also remove whole experts, the same share of every layer's, with their rows of the router;
            `"experts<=50%"` bounds their number, any other budget takes them before widths, unless they take none of
            what it bounds (MACs, where a token is given as many as before), see `planned_with_experts`.
            `own_class`: let only those groups and counts through that the class's own code survives, so that no
            rewritten graph takes its place: groups that its code can't lose stay, halves of a `chunk` keep equal counts
            (the smaller of the two). A note in the plan says which. Methods in stages leave such halves whole.
        allocation: scope, cost exponent, rounding, floor. By default the scope is `auto`: of several plans, whose cost
            counts more or less against their scores, the one whose network is nearest to the dense one after repair.
            Without repair, of the global plan and the one by measured losses that which costs less loss on the first
            batches, where there are data; methods in stages take `global`.
        repair: whether what stays takes over what goes, where there are data: the layers behind what goes are refitted
            to what the dense network makes (see `prunus.repair`), without labels or gradients. Of masks inside weights
            what they leave is refitted once they are fixed, and tuned on unless the weights that trained along lose
            less. Methods in stages, whole filters and numbers on a grid are trained alone.
        seed: for everything random.
        progress: show a progress bar where there is a terminal.
        checkpoint: methods that work in stages write this file after each of them; `Checkpoint(path, resume=True)` goes
            on from it if it is there.

    A promise is what the network may lose, and with which confidence over the draw of `Splits.validation` that has to
    be shown: `"accuracy>=dense-1%@95%"` (percentage points of top-1), `"accuracy>=90%@95%"`, `"agreement>=98%@95%"`
    (examples on which it gives the dense network's answer; no labels needed), or, of a loss that never leaves a range,
    `"loss<=dense+0.05@95% in 0..1"`. Scores are learned once; networks of 95 %, 90 %, ... of the MACs are tested from
    the largest down, and the last before the first that is not shown is returned. The plan's notes say what was shown.

    A method with a rule of its own (`rbp`) needs no target. The plan of masks inside weights holds them: `apply_` lays
    them on the dense network's weights, where values that were trained along are in the result's model alone.

    Returns:
        The smaller model with its plan, findings and proof.

    Raises:
        PruneError: one of its kinds, naming the thing and what to do; the model is as it was.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> result = prunus.prune(net, torch.randn(2, 8), method="l1", target="macs<=50%")
        >>> result.model[0], result.verification.max_error < 1e-5
        (Linear(in_features=8, out_features=8, bias=True), True)

        Masks inside weights, learned with them:

        >>> loader = [(torch.randn(32, 8), torch.randint(4, (32,)))]
        >>> masks = prunus.DynamicProbabilisticPruning(epochs=1, tune_epochs=1)
        >>> ways = {"target": "2:4", "data": loader, "loss_fn": F.cross_entropy}
        >>> result = prunus.prune(net, torch.randn(2, 8), method=masks, **ways)
        >>> (result.model[0].weight.reshape(-1, 4) != 0).sum(1).unique()
        tensor([2])
    """
    chosen = resolve(method)
    request = requested(target, allocation, method=chosen.name, takes=chosen.targets, optional=chosen.decides)
    check_patterns(request.patterns)
    check_runtimes(request)
    opened = allowed(allow, method=chosen.name, takes=chosen.allows)
    stages, seed = Checkpoint.of(checkpoint), as_seed(seed)
    start_at(seed, alike=True)  # the order of loaders that shuffle
    if stages is not None and not chosen.in_stages and stages.steps is None:
        what = f"method {chosen.name!r} has no stages"
        raise ConfigError("checkpoint", what, "leave it out, or use a method that works in stages, such as 'rbp'")
    check_copyable(model)
    if loss_fn is None and isinstance(data, DataSource):
        loss_fn = learned_by(data)
    graph = trace(model, example_inputs, follow_branches="follow_branches" in opened)
    problem = Problem(
        model,
        example_inputs,
        graph,
        request,
        split_up(data, model, seed),
        loss_fn,
        ignored_layers,
        opened,
        seed=seed,
        progress=progress,
        checkpoint=stages,
        repair=(RepairConfig() if repair else None) if isinstance(repair, bool) else repair,
    )
    problem = with_measured(problem)
    result = solve(chosen, problem) if request.promise is None else promised(chosen, problem)
    note = problem.without_labels(chosen) if chosen.needs_data or result.scores.measured else None
    return result if note is None else replace(result, plan=result.plan.with_notes(note))
