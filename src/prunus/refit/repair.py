"""`repair()`: layers behind removed units are refitted, in data-flow order, to what the dense network makes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from prunus.data.batches import as_batches
from prunus.errors import DataError
from prunus.graph.engine import argument, operation
from prunus.plan.plan import Plan
from prunus.refit.calls import LayerCall, layer_call, rows_of
from prunus.refit.joins import Step, carried_back, path_to_sums, sign
from prunus.refit.least_squares import EVERY, RIDGES, Channels, LeastSquares
from prunus.refit.lockstep import Lockstep
from prunus.refit.order import ordered
from prunus.refit.told import Refit
from prunus.runtime.arguments import examples_in
from prunus.runtime.copies import copied
from prunus.runtime.entry import entry
from prunus.runtime.fields import check_fields
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import full_precision, to_device
from prunus.runtime.processes import model_device
from prunus.runtime.progress import progress_bar
from prunus.runtime.ranges import Count
from prunus.surgery.cut import check_fits
from prunus.surgery.rewrite import captured_freely


@dataclass(frozen=True)
class RepairConfig:
    """How layers are refitted.

    Attributes:
        examples: how many examples are looked at, at most.
        rows: rows (positions of examples) that a layer is fitted to, for each of its unknowns; at least `least_rows`.
        least_rows: see `rows`.
        layers: `readers` of what goes, or `all` layers whose input has changed.
        sums: what the other side of a residual sum gets wrong is added to what the layer before the sum should make.
    """

    examples: Count = 1024
    rows: Count = 20
    least_rows: Count = 4096
    layers: Literal["all", "readers"] = "all"
    sums: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Repaired:
    """A dense network that loses less when the plan is applied to it.

    Attributes:
        model: a copy of the dense network with the refitted weights; to be given to `apply_` with the plan.
        refits: what was done, layer by layer, in the order in which it was done.
    """

    model: nn.Module
    refits: tuple[Refit, ...] = field(default=())


@entry(unchanged=True)
def repair(
    model: nn.Module,
    plan: Plan,
    loader: Iterable[Any],
    *,
    config: RepairConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Repaired:
    """Refit the layers behind removed units so that they make what the dense network makes; no labels, no gradients.

    Args:
        model: the dense network that the plan was made for; not touched.
        plan: what goes.
        loader: batches as for `prune`; targets are not looked at.
        config: how.
        seed: which rows are looked at.
        progress: show a progress bar where there is a terminal.

    Returns:
        A repaired copy of the dense network, and what was won back in each layer.

    Raises:
        PlanError: the plan was made for another model.
        DataError: no batch.
        TraceError, SurgeryError: the model can't be run operation by operation.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> x = torch.randn(256, 8)
        >>> plan = prunus.Plan.from_kept(prunus.trace(net, x), {"0": range(12)})
        >>> repaired = prunus.repair(net, plan, [x])
        >>> [refit.layer for refit in repaired.refits]
        ['2']
        >>> smaller = prunus.apply_(repaired.model, plan, x)
    """
    check_fits(model, plan)
    config = config or RepairConfig()
    new = copied(model)
    batches = _first_examples(new, loader, config.examples)
    with eval_mode(new), torch.no_grad(), full_precision():
        graph = captured_freely(new, plan, batches[0])
        run = Lockstep(graph, plan, new)
        told = _refit_all(run, batches, plan, config, seed, progress)
    _write_(new, run)
    return Repaired(new, told)


def _first_examples(model: nn.Module, loader: Iterable[Any], wanted: int) -> list[Any]:
    batches, device, seen = [], model_device(model), 0
    for inputs, _ in as_batches(loader, model):
        batches.append(to_device(inputs, device))
        seen += examples_in(inputs)
        if seen >= wanted:
            break
    if not batches:
        raise DataError("loader", "there is no batch in it", "give batches of inputs")
    return batches


def _refit_all(
    run: Lockstep, batches: list[Any], plan: Plan, config: RepairConfig, seed: int, progress: bool
) -> tuple[Refit, ...]:
    nodes = list(run.module.graph.nodes)
    calls = {n: c for n in nodes if n.op == "call_function" and (c := layer_call(n)) is not None}
    paths = {n: path_to_sums(n) if config.sums else () for n in calls}
    order, known = ordered(nodes, paths)
    readers = {entry.module for entry in plan.masked}
    told = []
    generator = torch.Generator().manual_seed(seed)
    with progress_bar("repair", len(calls), progress) as bar:
        for node in run.run(order, batches):
            call = calls.get(node)
            if call is None:
                continue
            bar.advance()
            bar.describe(f"repair {call.name}")
            asked = config.layers == "all" or call.name in readers
            if asked and run.differs(call.source):
                told.append(_refit(run, call, paths[node], known.get(node, []), config, generator))
    return tuple(told)


def _refit(
    run: Lockstep, call: LayerCall, path: tuple[Step, ...], sums: list[Step], config: RepairConfig,
    generator: torch.Generator,
) -> Refit:  # fmt: skip
    if len(call.weight.users) > 1:
        return Refit(call.name, 0.0, 0.0, reason="its weight is used by several calls")
    weight, place = run.stored[0][call.weight], _constant(call)
    problem, before = None, 0
    total = sum(examples_in(dense[call.node]) for dense, _ in run.values)
    for dense, masked in run.values:
        result, source = dense[call.node], masked[call.source]
        if problem is None:
            problem = LeastSquares(call, weight, _channels(run, call, source, result), place is not None)
            count = max(config.least_rows, config.rows * problem.unknowns)
        wanted = result
        if call.bias is not None:
            dim = call.channel_dim(result, weight)
            wanted = result - run.stored[0][call.bias].reshape([-1 if d == dim else 1 for d in range(result.dim())])
        if missing := {s.node: sign(s) * (dense[s.other] - masked[s.other]) for s in sums if run.differs(s.other)}:
            wanted = wanted + carried_back(path, result.shape, missing, {**run.stored[0], **dense})
        examples = examples_in(result)
        rows, held = _chosen(run, call, result, weight, before, count / total, generator)
        before += examples
        problem.add(source, wanted, result, rows, held)
    assert problem is not None
    problem.over_ranks_()
    found = problem.solve(RIDGES)
    if found.weight is None:
        return Refit(call.name, found.before, found.after, reason="no change helps on held-out data")
    run.replace(call.weight, found.weight.to(weight.dtype))
    if place is not None and found.constant is not None:
        old = run.stored[1][place]
        new = old - found.constant.to(old) if place is not call.bias else old + found.constant.to(old)
        run.replace(place, new)
    samples = int(problem.fitted.count + problem.held.count)
    return Refit(call.name, found.before, found.after, found.ridge, samples)


def _constant(call: LayerCall) -> fx.Node | None:
    """The stored tensor that can take a constant: the bias, or the mean of the batch norm behind."""
    if call.bias is not None:
        return call.bias if len(call.bias.users) == 1 else None
    user = next(iter(call.node.users), None)
    if user is None or len(call.node.users) > 1 or operation(user) != "batch_norm" or user.args[0] is not call.node:
        return None
    mean = argument(user, 3, "running_mean")
    return mean if isinstance(mean, fx.Node) and mean.op == "get_attr" and len(mean.users) == 1 else None


def _channels(run: Lockstep, call: LayerCall, source: Tensor, result: Tensor) -> Channels:
    weight = run.stored[0][call.weight]
    lines = []
    for node, value in ((call.source, source), (call.node, result)):
        there, dim = run.present(node, value), call.channel_dim(value, weight)
        if there is None:
            lines.append(torch.ones(value.shape[dim], dtype=torch.bool, device=value.device))
            continue
        others = [d for d in range(there.dim()) if d != dim]
        lines.append((there.any(others) if others else there).expand(value.shape[dim]))
    return Channels(*lines)


def _chosen(
    run: Lockstep, call: LayerCall, result: Tensor, weight: Tensor, before: int, share: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Some rows of each example of a batch, and which of them are held out."""
    examples = result.shape[0]
    each = result.numel() // result.shape[call.channel_dim(result, weight)] // examples
    count = min(each, max(1, round(share + 0.499999)))
    if count == each:
        rows = torch.arange(examples * each)
    else:
        picked = torch.rand(examples, each, generator=generator).topk(count, dim=1).indices
        rows = (picked + torch.arange(examples)[:, None] * each).reshape(-1)
    held = ((rows // each + before) % EVERY) == EVERY - 1
    there = run.present(call.node, result)
    if there is not None and there.any(call.channel_dim(result, weight)).logical_not().any():
        inside = rows_of(call, there.expand(result.shape), weight).any(1).cpu()
        rows, held = rows[inside[rows]], held[inside[rows]]
    return rows.to(result.device), held.to(result.device)


@torch.no_grad()
def _write_(model: nn.Module, run: Lockstep) -> None:
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for node, tensor in run.stored[1].items():
        old = run.stored[0][node]
        if isinstance(tensor, Tensor) and tensor is not old:
            target = str(node.target)
            held = tensors[target]
            there = run.masked._there(run.masked.places.get(target, ""), 0, held)
            held.copy_(tensor if there is None else torch.where(there, tensor, held))
