"""Batch norm's running statistics, computed anew: pruning changes what the layers see."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunus.errors import ConfigError, DataError
from prunus.graph.capture import as_arguments
from prunus.graph.engine import operation
from prunus.parallel import average_over_ranks_
from prunus.precision import to_device

MEAN, VARIANCE, TRAINING, MOMENTUM = 3, 4, 5, 6


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Any], *, num_batches: int | None = None) -> nn.Module:
    """Replace the running statistics of every batch norm by their plain averages over batches, in place.

    After n batches a running mean is the mean of the n batch means and a running variance the mean of the n unbiased
    batch variances, each batch counting the same, as PyTorch has it for `momentum=None`. The rest of the network runs
    in eval mode. Modes, momenta and counters are put back; nothing but running statistics changes. In captured graphs
    (`RewrittenModel`) the batch norm calls get momentum 1/n at their n-th use, which is the same average. Under
    several processes the result is averaged over the ranks.

    Args:
        model: any module; one without running statistics is returned as it is.
        batches: (inputs, targets) pairs; inputs are a tensor, a tuple of arguments or a dict of keyword arguments.
        num_batches: stop after as many; None takes all.

    Returns:
        The same model.

    Raises:
        ConfigError: num_batches below 1.
        DataError: no batch, or NaN or infinity in the new statistics (the old ones are put back).
    """
    if num_batches is not None and num_batches < 1:
        raise ConfigError(f"num_batches={num_batches}", "no batch to estimate from", "give at least 1, or None")
    modules = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    graphs = {m: nodes for m in model.modules() if isinstance(m, fx.GraphModule) if (nodes := _calls(m))}
    if not modules and not graphs:
        return model
    statistics = _statistics(modules, graphs)
    before = [s.clone() for s in statistics]
    device = statistics[0].device
    try:
        with _averaging(model, modules, graphs), torch.no_grad():
            count = 0
            for inputs, _ in itertools.islice(batches, num_batches):
                _set_momentum(graphs, count)
                count += 1
                args, kwargs = as_arguments(to_device(inputs, device))
                model(*args, **kwargs)
        if not count:
            raise DataError("batches", "there are none", "give at least one batch")
        average_over_ranks_(statistics)
        if not all(bool(torch.isfinite(s).all()) for s in statistics):
            raise DataError("batch norm statistics", "NaN or infinity", "check the inputs and the weights for NaN")
    except BaseException:
        for statistic, old in zip(statistics, before, strict=True):
            statistic.copy_(old)
        raise
    return model


def _calls(module: fx.GraphModule) -> list[fx.Node]:
    """The graph's batch norm calls that keep running statistics."""
    nodes = [n for n in module.graph.nodes if n.op == "call_function" and operation(n) == "batch_norm"]
    return [n for n in nodes if len(n.args) > MOMENTUM and n.args[MEAN] is not None]


def _statistics(modules: list[_BatchNorm], graphs: dict[fx.GraphModule, list[fx.Node]]) -> list[torch.Tensor]:
    found = [t for m in modules for t in (m.running_mean, m.running_var) if t is not None]
    for graph, nodes in graphs.items():
        for node in nodes:
            found += [graph.get_buffer(str(_named(node.args[i]).target)) for i in (MEAN, VARIANCE)]
    # A shared layer must be saved, averaged and put back once.
    return list({id(t): t for t in found}.values())


def _named(argument: Any) -> fx.Node:
    if isinstance(argument, fx.Node) and argument.op == "get_attr":
        return argument
    raise ConfigError(
        "batch norm", f"its statistics come from {argument}, not from a buffer", "re-estimate before export"
    )


@contextmanager
def _averaging(
    model: nn.Module, modules: list[_BatchNorm], graphs: dict[fx.GraphModule, list[fx.Node]]
) -> Iterator[None]:
    """Batch norms in training mode and all else in eval mode; afterwards every mode, momentum and counter as before."""
    modes = {m: m.training for m in model.modules()}
    momenta = {m: m.momentum for m in modules}
    counters = [(b, b.clone()) for n, b in model.named_buffers() if n.endswith("num_batches_tracked")]
    arguments = {g: {n: n.args for n in g.graph.nodes} for g in graphs}
    try:
        model.eval()
        for norm in modules:
            norm.training = True
            norm.momentum = None
            norm.reset_running_stats()
        for nodes in graphs.values():
            for node in nodes:
                node.update_arg(TRAINING, True)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for counter, old in counters:
            counter.copy_(old)
        for graph, saved in arguments.items():
            for node, args in saved.items():
                node.args = args
            graph.recompile()


def _set_momentum(graphs: dict[fx.GraphModule, list[fx.Node]], batch: int) -> None:
    """Momenta that make the running statistics of the calls a plain average; `batch` counts from 0."""
    for graph, nodes in graphs.items():
        uses = Counter(_named(node.args[MEAN]).target for node in nodes)
        seen: Counter[Any] = Counter()
        for node in nodes:
            buffer = _named(node.args[MEAN]).target
            seen[buffer] += 1
            # A layer that is called k times a batch averages over k values a batch.
            node.update_arg(MOMENTUM, 1.0 / (batch * uses[buffer] + seen[buffer]))
        graph.recompile()
