"""`prunus analyze`: what may be removed, what is locked, and why."""

from __future__ import annotations

from typing import Any

from prunus.cli.options import Examples, ModelSpec, Reads, Shape
from prunus.cli.terminal import show
from prunus.graph.trace import trace
from prunus.pipeline.inputs import examples, loaded, place_of
from prunus.plan.cost import count_cost
from prunus.reports.tables import prunability


def analyze(model: ModelSpec, data: Examples = None, load: Reads = None, shape: Shape = None) -> dict[str, Any]:
    """Say what may be removed from a model, what is locked, and why."""
    spec = place_of(model)
    network, inputs = loaded(spec, None)
    graph = trace(network, examples(inputs, data, shape, spec, network, load or ()))
    show(prunability(graph))
    groups = [
        {"name": g.name, "kind": g.kind, "units": g.units, "prunable": g.prunable, "inside_heads": g.inside_heads,
         "rows": g.multiple, "locked": g.locked, "source": g.source} for g in graph.channel_groups
    ]  # fmt: skip
    blocks = [{"name": b.name, "locked": b.locked, "source": b.source} for b in graph.blocks.units]
    return {"model": graph.model, "groups": groups, "blocks": blocks, "cost": dict(count_cost(graph))}
