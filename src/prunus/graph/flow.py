"""The network as people draw it: its layers and where their results meet, in data flow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import fx

from prunus.graph.engine import Result, module_path, operation, source_line
from prunus.graph.grouping import Graph

Kind = Literal["input", "layer", "junction", "output"]


@dataclass(frozen=True)
class Step:
    """One row of the drawing.

    Attributes:
        name: the submodule; of a junction the operation, of an input its name in the code.
        kind: `layer` has weights that units are written into; at a `junction` results of different layers meet.
        after: numbers of the steps whose results come in; all of them are earlier.
        source: source line of the call.
        tensors: parameters and buffers that the layer multiplies or looks up, by name.
    """

    name: str
    kind: Kind
    after: tuple[int, ...]
    source: str = ""
    tensors: tuple[str, ...] = ()


def data_flow(graph: Graph) -> tuple[Step, ...]:
    """Inputs, layers, junctions and outputs of an analysed network, in the order in which they are computed.

    Operations with a single source (activations, normalisations, reshapes) are passed over, so that an edge leads from
    a layer to the layer that reads it. A layer that is called several times is one step, where it is called first.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> [(s.name, s.after) for s in data_flow(prunus.trace(net, torch.randn(2, 8)))]
        [('input', ()), ('0', (0,)), ('2', (1,)), ('output', (2,))]
    """
    drawn = {slot.tensor for group in graph.channel_groups for slot in group.writers}
    drawn |= {graph.aliases.get(c.weight, c.weight) for c in graph.contractions}
    owners: dict[str, set[str]] = {}
    for alias, first in graph.aliases.items():
        owners.setdefault(first, set()).add(alias.rpartition(".")[0])
    steps: list[Step] = []
    numbers: dict[str, int] = {}
    sources: dict[fx.Node, frozenset[int]] = {}

    def added(step: Step) -> frozenset[int]:
        steps.append(step)
        return frozenset({len(steps) - 1})

    for node in graph.program.graph.nodes:
        if node.op == "output":
            added(Step("output", "output", _sorted(sources.get(n, frozenset()) for n in node.all_input_nodes)))
            continue
        if _stored(graph.values.get(node)) is not None:
            continue
        if node.op == "placeholder":
            sources[node] = added(Step(node.name, "input", ()))
            continue
        come = [sources[n] for n in node.all_input_nodes if n in sources]
        held = {name for n in node.all_input_nodes for name in _stored(graph.values.get(n)) or ()}
        own = sorted(held & drawn)
        everything = frozenset[int]().union(*come)
        if own:
            module = _layer(node, own[0], owners)
            if module in numbers:
                sources[node] = frozenset({numbers[module]})
                continue
            sources[node] = added(Step(module, "layer", _sorted(come), source_line(node), tuple(own)))
            (numbers[module],) = sources[node]
        elif everything in come or not come:
            sources[node] = everything
        else:
            sources[node] = added(Step(operation(node), "junction", _sorted(come), source_line(node)))
    return tuple(steps)


def _layer(node: fx.Node, tensor: str, owners: Mapping[str, set[str]]) -> str:
    """The module that the call belongs to; of a tied tensor the one that calls, if it holds the tensor too."""
    calling = module_path(node)
    if calling and calling in owners.get(tensor, ()):
        return calling
    return tensor.rpartition(".")[0] or tensor


def _stored(result: Result | None) -> frozenset[str] | None:
    """Names of the tensors that a value is made of, if nothing else comes in."""
    value = result[0] if isinstance(result, list) and result else result
    return getattr(value, "stored", None)


def _sorted(parts: Iterable[frozenset[int]]) -> tuple[int, ...]:
    return tuple(sorted(frozenset[int]().union(*parts)))
