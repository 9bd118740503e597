"""`prunus export`: a model or an artifact in another form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.options import Examples, ModelSpec, Reads, Shape, Weights
from prunus.cli.terminal import say
from prunus.data.datasets import first_of
from prunus.errors import ConfigError
from prunus.formats.artifact import is_artifact, load_masks
from prunus.formats.registry import COMPARED, EXPORTERS, Exportable, exporter_for
from prunus.masks.activations import grids_of
from prunus.pipeline.inputs import data_for, examples, loaded, place_of
from prunus.plan.plan import Plan

SUFFIXES = sorted({suffix for e in EXPORTERS.values() if (suffix := Path(e.file).suffix)})


def export(
    model: ModelSpec,
    path: Annotated[Path, typer.Argument(metavar="PATH", help=f"file to write ({', '.join(SUFFIXES)}), or folder")],
    form: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help=f"{', '.join(EXPORTERS)}; by default what the file's name says"),
    ] = None,
    data: Examples = None,
    load: Reads = None,
    shape: Shape = None,
    weights: Weights = None,
) -> dict[str, Any]:
    """Write a model or an artifact as ONNX, as an exported program or in another form, with a free batch size."""
    if form is not None and form not in EXPORTERS:
        raise ConfigError(f"--as {form}", "there is none of that name", f"use one of {', '.join(EXPORTERS)}")
    exporter = exporter_for(path) if form is None else EXPORTERS[form]
    exporter.check()
    spec = place_of(model)
    network, inputs = loaded(spec, weights)
    held = is_artifact(spec)
    given = examples(inputs, data, shape, spec, network, load or ())
    batch = None
    if exporter.name == "int8" and data is not None:
        source = data_for(data, network, spec, load or (), labelled=False, say=say)
        batch = first_of(source.validation, COMPARED, network)
    masks = load_masks(spec) if held else {}
    subject = Exportable(
        network,
        given,
        Plan.load(Path(spec) / "plan.json") if held else None,
        masks,
        tuple(grids_of(masks)),
        batch=batch,
        origin=spec,
    )
    done = exporter(subject, path)
    say(f"{path}: {done.note}")
    return {"path": str(path), "error": done.error, "note": done.note}
