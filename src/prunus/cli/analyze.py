"""`prunus analyze`: what may be removed, what is locked, why, and what each target would leave."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from prunus.cli.options import Examples, ModelSpec, Reads, Shape
from prunus.cli.terminal import show
from prunus.graph.trace import trace
from prunus.pipeline.inputs import examples, loaded, place_of
from prunus.pipeline.planning import prunable_groups
from prunus.plan.cost import count_cost
from prunus.plan.outlook import COUNTED, outlook
from prunus.reports.tables import prospects_table, prunability


def analyze(
    model: ModelSpec,
    data: Examples = None,
    load: Reads = None,
    shape: Shape = None,
    costs: Annotated[
        str | None,
        typer.Option(
            "--costs",
            metavar="RESOURCE",
            help=f"also what 90, 80, ... 30 % of it would leave, from shapes alone: {', '.join(COUNTED)}",
        ),
    ] = None,
    experts: Annotated[bool, typer.Option("--experts", help="with --costs: whole experts go too")] = False,
) -> dict[str, Any]:
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
    found = {"model": graph.model, "groups": groups, "blocks": blocks, "cost": dict(count_cost(graph))}
    if costs is None:
        return found
    whole = [g for g in graph.experts if g.locked is None] if experts else []
    prospects = outlook(graph, [*prunable_groups(graph, network), *whole], resource=costs)
    sizes = [(p.numel(), p.element_size()) for p in network.parameters()]
    width = sum(n * s for n, s in sizes) / max(1, sum(n for n, _ in sizes))
    show(prospects_table(graph, prospects, width))
    told = [
        {"target": p.target, "cost": p.cost and dict(p.cost), "kept": dict(p.kept), "refusal": p.refusal}
        for p in prospects
    ]
    return {**found, "bytes_of_a_parameter": width, "targets": told}
