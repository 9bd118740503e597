"""Layers refitted one after another, in an order in which what each has to make up for is known."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from prunus.graph.engine import argument, depends_on_data, module_path, operation
from prunus.plan.plan import Plan
from prunus.refit.behind import Behind
from prunus.refit.calls import LayerCall, computed_layer, layer_call, picked_rows, read_places, regressors, rows_of
from prunus.refit.config import RepairConfig
from prunus.refit.least_squares import Channels, Clamped, LeastSquares
from prunus.refit.lockstep import Lockstep
from prunus.refit.order import ordered
from prunus.refit.paths import Path, path_behind
from prunus.refit.sampling import sampled_rows
from prunus.refit.told import Refit
from prunus.runtime.arguments import examples_in
from prunus.runtime.dealing import Share
from prunus.runtime.progress import progress_bar


def refit_layers(
    run: Lockstep,
    batches: Sequence[Any],
    plan: Plan,
    config: RepairConfig,
    seed: int,
    progress: bool,
    *,
    judged: bool = False,
    shares: Sequence[Share] = (),
    fixed: Collection[str] = (),
) -> tuple[Refit, ...]:
    """Refit layers in the masked network; afterwards `run` holds the outputs of both.

    Args:
        run: both networks.
        batches: inputs.
        plan: what goes.
        config: how.
        seed: of the rows.
        progress: show a bar where there is a terminal.
        judged: the held-out examples are to judge the network by: nothing is fitted to them.
        shares: which part of each batch `batches` are, and of more that other processes have; by default all.
        fixed: weights that stay as they are.
    """
    shares = shares or _alone(examples_in(b, none=0) for b in batches)
    nodes = list(run.module.graph.nodes)
    calls = {n: c for n in nodes if n.op == "call_function" and (c := layer_call(n)) is not None}
    paths = {n: path_behind(n) if config.sums else Path() for n in calls}
    order, known = ordered(nodes, paths)
    readers = {entry.module for entry in plan.masked} | {pattern.module for pattern in plan.patterns}
    told = []
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with progress_bar("repair", len(calls), progress) as bar:
        for node in run.run(order, batches):
            call = calls.get(node)
            if call is None:
                source = computed_layer(node)
                if source is not None and run.differs(source):
                    told.append(Refit(module_path(node) or node.name, 0.0, 0.0, reason="its weight is computed"))
                continue
            bar.advance()
            bar.describe(f"repair {call.name}")
            asked = config.layers == "all" or call.name in readers
            asked = asked and str(call.weight.target) not in {*plan.removal.tensors, *fixed}
            if asked and (run.differs(call.source) or run.support(call.weight) is not None):
                behind = Behind(paths[node], known.get(node, ()))
                told.append(_refit(run, call, behind, config, generator, judged, shares))
    return tuple(told)


def _refit(
    run: Lockstep,
    call: LayerCall,
    behind: Behind,
    config: RepairConfig,
    generator: torch.Generator,
    judged: bool,
    shares: Sequence[Share],
) -> Refit:
    weight, reason = run.stored[0][call.weight], _unfit(run, call)
    if reason:
        return Refit(call.name, 0.0, 0.0, reason=reason)
    place, bounds = _constant(run, call), behind.bounds
    first = run.held(0)[0][call.node], run.held(0)[1][call.source]
    channels, support = _channels(run, call, first[1], first[0]), run.support(call.weight)
    problem = LeastSquares(call, weight, channels, place is not None, bounds, support)
    _gather(run, problem, behind, config, generator, shares)
    found = problem.solve(all_rows=not judged)
    if found.weight is None:
        return Refit(call.name, found.before, found.after, reason=found.reason)
    run.replace(call.weight, found.weight)
    if place is not None and found.constant is not None:
        old = run.stored[1][place]
        new = old - found.constant.to(old) if place is not call.bias else old + found.constant.to(old)
        run.replace(place, new)
    return Refit(call.name, found.before, found.after, found.ridge, found.samples)


def _gather(
    run: Lockstep,
    problem: LeastSquares,
    behind: Behind,
    config: RepairConfig,
    generator: torch.Generator,
    shares: Sequence[Share],
) -> None:
    """Rows of all batches."""
    call, weight = problem.call, problem.weight
    wanted = min(max(config.least_rows, config.rows * problem.unknowns), config.most_rows)
    made = [dense[call.node] for dense, _ in run.values]
    counts = [call.examples_in(m, weight, batch) for m, batch in zip(made, run.examples, strict=True)]
    if counts != run.examples:  # what has other examples than the batch is nobody else's part of something
        shares = _alone(counts)
    each_wanted, each = wanted / max(sum(share.whole for share in shares), 1), 0
    for number, examples in enumerate(counts):
        dense, masked = run.held(number)
        result, source = dense[call.node], masked[call.source]
        if not result.numel():
            continue
        each = result.numel() // result.shape[call.channel_dim(result, weight)] // examples
        inside = _present_rows(run, call, result, weight)
        rows, held = sampled_rows(shares[number], each, each_wanted, config.held_out, generator, inside)
        rows, held = rows.to(result.device), held.to(result.device)
        x = regressors(call, source, weight, *read_places(call, weight, source, result, rows), problem.inputs)
        target, end, factor = (
            None if t is None else problem.outputs(picked_rows(call, t, weight, rows))
            for t in behind.targets(run, number, call)
        )
        assert target is not None
        problem.add(x, target, held)
        if end is not None and factor is not None:
            problem.clamped.append(Clamped(x, target, end, factor, held))
    for share in shares[len(counts) :]:  # other processes draw for batches of which nothing is here
        sampled_rows(share, each, each_wanted, config.held_out, generator)


def _alone(counts: Iterable[int]) -> tuple[Share, ...]:
    """Batches that no other process has a part of."""
    found: list[Share] = []
    for count in counts:
        found.append(Share.alone(count, found[-1].before + found[-1].whole if found else 0))
    return tuple(found)


def _present_rows(run: Lockstep, call: LayerCall, result: Tensor, weight: Tensor) -> Tensor | None:
    """Rows of which anything stays, on the processor; None if that is so of all."""
    there = run.present(call.node, result)
    if there is None or not _varies(there, call.channel_dim(result, weight)):
        return None
    return rows_of(call, there.expand(result.shape), weight).any(1).cpu()


def _varies(there: Tensor, dim: int) -> bool:
    """Whether what stays is not the same along another dimension than channels."""
    return any(size > 1 for d, size in enumerate(there.shape) if d != dim)


def _unfit(run: Lockstep, call: LayerCall) -> str:
    """Why a layer can't be refitted, or ""."""
    if _rows_differ(run, call.node):
        return "which rows come to it depends on data: they are others in the smaller network"
    if len(call.weight.users) > 1:
        return "its weight is used by several calls"
    if not run.owned(call.weight):
        return "its weight is neither a parameter nor a buffer"
    return "" if run.stored[0][call.weight].is_floating_point() else "its weight is not one of real numbers"


def _rows_differ(run: Lockstep, node: fx.Node) -> bool:
    """Whether what decides how many rows come to a node, and which, is not the same in both networks."""
    waiting = [node] if depends_on_data(node) else []
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        above = [n for n in node.all_input_nodes if depends_on_data(n)]
        if operation(node) in ("index", "masked_select"):
            places = node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
            deciding = [n for n in places if isinstance(n, fx.Node)]
        else:
            deciding = [] if above else node.all_input_nodes
        if any(map(run.differs, deciding)):
            return True
        waiting += [n for n in above if n not in seen]
        seen.update(above)
    return False


def _constant(run: Lockstep, call: LayerCall) -> fx.Node | None:
    """The stored tensor that can take a constant: the bias, or the mean of the batch norm behind."""
    if call.bias is not None:
        return call.bias if len(call.bias.users) == 1 and run.owned(call.bias) else None
    user = next(iter(call.node.users), None)
    if user is None or len(call.node.users) > 1 or operation(user) != "batch_norm" or user.args[0] is not call.node:
        return None
    mean = argument(user, 3, "running_mean")
    fine = isinstance(mean, fx.Node) and mean.op == "get_attr" and len(mean.users) == 1 and run.owned(mean)
    return mean if fine else None


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
