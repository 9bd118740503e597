"""`prunus analyze`: what may be removed, what is locked, and why."""

from __future__ import annotations

from prunus.cli.inputs import examples, loaded, place_of
from prunus.cli.options import Examples, ModelSpec, Reads, Shape
from prunus.cli.terminal import show
from prunus.graph.trace import trace
from prunus.reports.tables import prunability


def analyze(model: ModelSpec, data: Examples = None, load: Reads = None, shape: Shape = None) -> None:
    """Say what may be removed from a model, what is locked, and why."""
    spec = place_of(model)
    network, inputs = loaded(spec, None)
    show(prunability(trace(network, examples(inputs, data, shape, spec, network, load))))
