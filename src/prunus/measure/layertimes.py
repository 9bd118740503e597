"""The table of measured layer costs over widths: made once for a machine, then read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.graph.grouping import Graph
from prunus.measure.layers import Layer, layer_run, layers_of
from prunus.measure.runtimes import clock_for, cores
from prunus.measure.stored import Stored
from prunus.plan.layercosts import BLOCKS, LayerCosts, LayerTable, block_of
from prunus.plan.setup import Setup
from prunus.runtime.processes import model_device
from prunus.runtime.progress import progress_bar
from prunus.runtime.timing import best_of, waiter

POINTS, ROUNDS = 12, 7
"""Widths of a layer that are timed along one dimension, about; samples of each, the least of which counts."""
SMALLEST = Layer("linear", (1, 1), (1, 1))
"""Takes as long as it takes to enter the runtime."""


def layer_table(
    model: nn.Module, graph: Graph, inputs: Any, setup: Setup, *, progress: bool = False, stored: Stored | None = None
) -> LayerTable:
    """Milliseconds of all layers of a network over their widths.

    Layers of the same sizes are timed once; what was stored of this machine, this runtime and this number of threads
    is not timed again.

    Args:
        model: the network.
        graph: its analysis.
        inputs: as many examples as are asked for.
        setup: runtime and threads.
        progress: show a bar.
        stored: where tables of this machine lie; None takes the user's cache.

    Raises:
        MissingDependencyError: the runtime is not installed.
    """
    device = model_device(model)
    layers = layers_of(model, graph, inputs)
    store = stored or Stored.of(setup, device)
    known = store.read()
    alone = setup.runtime in ("onnx", "openvino")  # there a layer by itself is a file of its own
    asked = dict.fromkeys([*layers.values(), *([SMALLEST] if alone else [])])
    missing = [layer for layer in asked if layer is not None and key_of(layer) not in known]
    with progress_bar("layers timed", len(missing), progress and bool(missing)) as bar, cores(setup.threads):
        for layer in missing:
            known[key_of(layer)] = timed(layer, setup, device, clock_for(model, setup.threads, setup.runtime))
            bar.advance()
    if missing:
        store.add({key_of(layer): known[key_of(layer)] for layer in missing})
    found = {weight: None if layer is None else known[key_of(layer)] for weight, layer in layers.items()}
    block = block_of([costs for costs in found.values() if costs is not None])
    return LayerTable(found, block, known[key_of(SMALLEST)].least if alone else 0.0, store.name)


def key_of(layer: Layer) -> str:
    """A layer as text: the same for layers of the same sizes."""
    sizes = ["x".join(map(str, part)) for part in (layer.weight, layer.input)]
    moved = ["x".join(map(str, part)) for part in (layer.stride, layer.padding, layer.dilation)]
    return " ".join([layer.kind, *sizes, *moved, str(layer.groups), layer.dtype])


def timed(layer: Layer, setup: Setup, device: torch.device, clock: Any) -> LayerCosts:
    """Least milliseconds of a layer along both dimensions of its weight, the samples taken in turns."""
    first, second = widths_of(layer.weight[0]), widths_of(layer.weight[1])
    whole = (first[-1], second[-1])
    places = dict.fromkeys([*((f, whole[1]) for f in first), *((whole[0], s) for s in second), (first[0], second[0])])
    with torch.no_grad():
        runs = [layer_run(layer.at(*place), setup, device) for place in places]
        found = dict(zip(places, best_of(runs, ROUNDS, waiter(device), clock), strict=True))
    return LayerCosts(
        first, second,
        _rising([found[f, whole[1]] for f in first]), _rising([found[whole[0], s] for s in second]),
        min(found[first[0], second[0]], found[whole]),
    )  # fmt: skip


def widths_of(size: int) -> tuple[int, ...]:
    """Widths that are timed: multiples of a block or of several, and the whole."""
    step = BLOCKS[0] * math.ceil(size / (BLOCKS[0] * POINTS))
    return tuple(sorted({*range(step, size, step), min(BLOCKS[0], size), size}))


def _rising(costs: Sequence[float]) -> tuple[float, ...]:
    return tuple(np.maximum.accumulate(costs).tolist())
