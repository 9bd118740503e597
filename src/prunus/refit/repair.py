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
from prunus.refit.behind import Behind
from prunus.refit.calls import LayerCall, layer_call, read_places, regressors, rows_of
from prunus.refit.least_squares import Channels, Clamped, LeastSquares
from prunus.refit.lockstep import Lockstep
from prunus.refit.order import ordered
from prunus.refit.paths import Path, path_behind
from prunus.refit.sampling import sampled_rows
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
        most_rows: see `rows`.
        layers: `readers` of what goes, or `all` layers whose input has changed.
        sums: what the other side of a residual sum gets wrong is added to what the layer before the sum should make.
    """

    examples: Count = 1024
    rows: Count = 80
    least_rows: Count = 16384
    most_rows: Count = 65536
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
    paths = {n: path_behind(n) if config.sums else Path() for n in calls}
    order, known = ordered(nodes, paths)
    readers = {entry.module for entry in plan.masked}
    told = []
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with progress_bar("repair", len(calls), progress) as bar:
        for node in run.run(order, batches):
            call = calls.get(node)
            if call is None:
                continue
            bar.advance()
            bar.describe(f"repair {call.name}")
            asked = config.layers == "all" or call.name in readers
            if asked and run.differs(call.source):
                behind = Behind(paths[node], known.get(node, ()))
                told.append(_refit(run, call, behind, config, generator))
    return tuple(told)


def _refit(run: Lockstep, call: LayerCall, behind: Behind, config: RepairConfig, generator: torch.Generator) -> Refit:
    if len(call.weight.users) > 1:
        return Refit(call.name, 0.0, 0.0, reason="its weight is used by several calls")
    weight, place = run.stored[0][call.weight], _constant(call)
    first = run.values[0][0][call.node], run.values[0][1][call.source]
    bounds = behind.path.bounds if len(behind.known) == len(behind.path.sums) else None
    problem = LeastSquares(call, weight, _channels(run, call, first[1], first[0]), place is not None, bounds)
    count = min(max(config.least_rows, config.rows * problem.unknowns), config.most_rows)
    total, before = sum(examples_in(dense[call.node]) for dense, _ in run.values), 0
    for number, (dense, masked) in enumerate(run.values):
        result, source = dense[call.node], masked[call.source]
        there = run.present(call.node, result)
        inside = None if there is None else rows_of(call, there.expand(result.shape), weight).any(1).cpu()
        each = result.numel() // result.shape[call.channel_dim(result, weight)] // len(result)
        rows, held = sampled_rows(len(result), each, count / total, before, generator, inside)
        rows, held, before = rows.to(result.device), held.to(result.device), before + len(result)
        place_, inside_ = read_places(call, weight, source, result, rows)
        x = regressors(call, problem.inputs(rows_of(call, source, weight)), place_, inside_)
        wanted, end, factor = behind.targets(run, number, call)
        parts = [problem.outputs(rows_of(call, t, weight).index_select(0, rows)) for t in (wanted, end, factor)
                 if t is not None]  # fmt: skip
        problem.add(x, parts[0], held)
        if problem.bounds is not None and len(parts) == 3:
            problem.clamped.append(Clamped(x, *parts))
    found = problem.solve()
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
