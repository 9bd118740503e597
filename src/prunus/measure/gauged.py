"""Latency and memory as quantities that a budget can bound: of the dense network, of smaller ones, and foretold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.graph.grouping import Graph
from prunus.measure.layers import Layer, layers_of
from prunus.measure.layertimes import layer_table
from prunus.measure.memory import live_memory
from prunus.measure.runtimes import clock_for, cores, runner
from prunus.plan.cost import CostModel
from prunus.plan.gauge import Gauge
from prunus.plan.layercosts import LayerTable
from prunus.plan.plan import Plan
from prunus.plan.resources import Remains
from prunus.plan.setup import Setup
from prunus.runtime.arguments import sized
from prunus.runtime.modes import eval_mode
from prunus.runtime.precision import to_device
from prunus.runtime.processes import model_device
from prunus.runtime.timing import best_of, interleaved, waiter

SECONDS, SAMPLE, FEWEST = 2.0, 0.03, 15
"""A smaller network is timed for about so long, in samples of so many seconds, of which there are at least so many."""
WARMUP = 3


def with_gauge(graph: Graph, resource: str, gauge: Callable[[Remains], float]) -> Graph:
    """The same analysis, with what is foretold of a resource."""
    return replace(graph, gauges={**graph.gauges, resource: gauge})


@dataclass(frozen=True)
class Measured:
    """A quantity that is measured and not counted.

    Attributes:
        resource: `latency` or `memory`.
        gauge: what is foretold of smaller networks.
        dense: of the network itself, in the resource's unit.
        of: of a smaller one; it is not changed.
        aim: share of a bound that is planned for, since what is measured scatters.
        told: what was measured and in what, for the notes of plans.
    """

    resource: str
    gauge: Gauge
    dense: float
    of: Callable[[nn.Module], float]
    aim: float
    told: str

    def count(self, graph: Graph, plan: Plan) -> float:
        """The rough count of a plan, which the gauge starts from."""
        rough = with_gauge(graph, self.resource, self.gauge.rough)
        return float(Plan.from_kept(rough, plan.kept).after[self.resource])


def measured(resource: str, model: nn.Module, graph: Graph, inputs: Any, setup: Setup, *, progress: bool) -> Measured:
    """A quantity of a network, ready to be measured of smaller ones.

    Args:
        resource: `latency` or `memory`.
        model: the dense network.
        graph: its analysis.
        inputs: example inputs, of any batch size.
        setup: in what it runs.
        progress: show bars.

    Raises:
        MissingDependencyError: the runtime is not installed.
        ExportError: the network can't be exported for it.
    """
    given = sized(to_device(inputs, model_device(model)), setup.batch)
    make = {"latency": _latency, "memory": _memory}[resource]
    return make(model, graph, given, setup, progress)


def _latency(model: nn.Module, graph: Graph, inputs: Any, setup: Setup, progress: bool) -> Measured:
    table = layer_table(model, graph, inputs, setup, progress=progress)
    clock, wait = clock_for(model, setup.threads, setup.runtime), waiter(model_device(model))
    with eval_mode(model), torch.no_grad(), cores(setup.threads):
        before = runner(setup.runtime, model, inputs, threads=setup.threads)
        once = best_of([before], FEWEST, wait, clock)[0]
        repeats = max(FEWEST, round(SECONDS / (2 * max(once / 1e3, SAMPLE))))
        dense = best_of([before], repeats, wait, clock)[0]

    def of(smaller: nn.Module) -> float:
        with eval_mode(model), eval_mode(smaller), torch.no_grad(), cores(setup.threads):
            after = runner(setup.runtime, smaller, inputs, threads=setup.threads)
            samples = interleaved(before, after, repeats, WARMUP, wait, clock, SAMPLE)
        return dense * min(samples[1]) / min(samples[0])

    told = f"latency of {setup} on {table.source}, layers by table {table.digest}"
    return Measured("latency", _started("latency", table, graph, dense), dense, of, 0.98, told)


def _memory(model: nn.Module, graph: Graph, inputs: Any, setup: Setup, _: bool) -> Measured:
    def of(smaller: nn.Module) -> float:
        with eval_mode(smaller), torch.no_grad():
            return float(live_memory(smaller, inputs))

    dense = of(model)
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    sizes = {name: tensor.element_size() for name, tensor in held.items()}
    rough = LiveCount(layers_of(model, graph, inputs), sizes)
    told = f"memory of {setup.batch} example{'s' * (setup.batch > 1)}: weights, inputs and live activations"
    return Measured("memory", _started("memory", rough, graph, dense), dense, of, 1.0, told)


def _started(resource: str, rough: Callable[[Remains], float], graph: Graph, dense: float) -> Gauge:
    count = CostModel(with_gauge(graph, resource, rough)).dense()[resource]
    return Gauge(rough, ((count, dense),), rough.block if isinstance(rough, LayerTable) else 1)


@dataclass(frozen=True)
class LiveCount:
    """Bytes of the weights, and of input and output of the layer that has most of both: less than is alive at once.

    Attributes:
        layers: by the name of the weight, None where it is none of PyTorch's.
        sizes: bytes of an element of each tensor that is held, by name.
    """

    layers: Mapping[str, Layer | None]
    sizes: Mapping[str, int]

    def __call__(self, left: Remains) -> float:
        """The count for what remains of a network."""
        most = 0.0
        for contraction, row in zip(left.layout.graph.contractions, left.layout.contracted, strict=True):
            call = self.layers.get(contraction.weight)
            if call is None:
                continue
            shares = left.shapes[row, :2] / np.array([*call.weight, 1][:2])
            first_is_output = call.kind in ("linear", "conv")
            along_output, along_input = shares if first_is_output else shares[::-1]
            along_input = shares[0] if call.groups > 1 else along_input
            width = 4 if call.dtype == "float32" else torch.finfo(getattr(torch, call.dtype)).bits // 8
            most = max(most, width * (along_output * call.output + along_input * float(np.prod(call.input))))
        held = sum(left.elements[row] * self.sizes.get(name, 0) for name, row in left.layout.tensors.items())
        return float(held) + most
