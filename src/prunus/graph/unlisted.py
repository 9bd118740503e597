"""Layers that no group tells of: what they are, and why none of their units can go.

Every layer has its line in the report. One whose weights are no units' (its weight is computed in a way that is not
followed, it has a single unit, it is never called, an opaque operation takes it whole) would have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from prunus.graph.engine import Engine, source_line
from prunus.graph.groups import ChannelGroup, IntArray

_RECURRENCE = "one operation takes it whole; prunus.separate_recurrence_(model) takes it apart"
APART: dict[type[nn.Module], str] = {
    nn.LSTM: _RECURRENCE,
    nn.GRU: _RECURRENCE,
    nn.MultiheadAttention: "its heads lie in one packed product; prunus.separate_attention_(model) takes it apart",
}
"""Modules of PyTorch that can be taken apart into layers, and how to."""


@dataclass(frozen=True)
class Unlisted:
    """A layer that no group tells of: its name, why, and the source line that reads it ('' if none does)."""

    name: str
    reason: str
    source: str = ""

    def __str__(self) -> str:
        return f"locked    {self.name}: {self.reason}" + (f"  [{self.source}]" if self.source else "")


def unlisted_layers(
    engine: Engine,
    program: ExportedProgram,
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    roots: IntArray,
    reasons: Mapping[int, str],
) -> tuple[Unlisted, ...]:
    """The layers without a line, in the model's order."""
    listed = {s.tensor for g in groups for s in g.slots if s in g.writers or not _reads(s.tensor, s.dim, engine)}
    free = {s.tensor for g in groups if g.locked is None for s in g.slots}
    readers = _readers(program)
    found: dict[str, Unlisted] = {}
    for name, module in model.named_modules():
        kinds = [kind for kind in APART if isinstance(module, kind)]
        inside = [f"{name}." * bool(name) + n for n, _ in module.named_parameters()]
        if kinds:
            if not free & set(inside):
                found[name] = Unlisted(name or "the model", APART[kinds[0]])
            listed |= set(inside)
            continue
        for tensor in (f"{name}." * bool(name) + n for n, p in module.named_parameters(recurse=False) if p.dim() > 1):
            layer = _layer(tensor)
            if tensor in listed or layer in found or any(_layer(other) == layer for other in listed):
                continue
            node = readers.get(tensor)
            source = "" if node is None else source_line(node)
            found[layer] = Unlisted(layer, _reason(tensor, node, engine, roots, reasons), source)
    return tuple(found.values())


def _layer(tensor: str) -> str:
    """The layer that a parameter belongs to: what is parametrized, or the module that holds it."""
    before, parametrized, _ = tensor.partition(".parametrizations.")
    return before if parametrized else tensor.rpartition(".")[0] or tensor


def _reads(tensor: str, dim: int, engine: Engine) -> bool:
    """True for the dimension of a layer's weight along which it reads: units there are another layer's."""
    return any(c.weight == tensor and c.axis == dim and not c.depthwise for c in engine.calls)


def _reason(tensor: str, node: fx.Node | None, engine: Engine, roots: IntArray, reasons: Mapping[int, str]) -> str:
    if node is None:
        return "it is not used on the way that the example inputs take"
    if any(call.weight == tensor for call in engine.calls):
        return "a single unit"
    value = engine.parameters.get(tensor)
    for plane in () if value is None else (*value.planes, *value.rows):
        for root in np.unique(roots[plane.reshape(-1).numpy()]).tolist():
            if root in reasons:
                return reasons[root]
    return "its weight is computed from what is stored in a way that is not followed"


def _readers(program: ExportedProgram) -> dict[str, fx.Node]:
    """The first operation that reads each parameter."""

    def named() -> Iterator[tuple[str, fx.Node]]:
        targets = {s.arg.name: s.target for s in program.graph_signature.input_specs if s.kind == InputKind.PARAMETER}
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in targets and node.users:
                yield str(targets[node.name]), next(iter(node.users))

    return dict(named())
