"""`prunus benchmark`: two models timed side by side."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from prunus.cli.options import Examples, ModelSpec, Reads, Shape, Weights
from prunus.cli.terminal import say, show
from prunus.errors import ConfigError
from prunus.measure.speed import check_modes, compare
from prunus.pipeline.inputs import examples, loaded, place_of
from prunus.pipeline.texts import names_in
from prunus.plan.setup import RUNTIMES
from prunus.reports.tables import changes
from prunus.runtime.arguments import examples_in, sized


def benchmark_command(
    model: ModelSpec,
    after: Annotated[str, typer.Argument(metavar="AFTER", help="the other model: as MODEL, or the folder of a run")],
    data: Examples = None,
    load: Reads = None,
    shape: Shape = None,
    weights: Weights = None,
    modes: Annotated[
        str, typer.Option("--modes", metavar="NAMES", help=f"ways to run them, of {', '.join(RUNTIMES)}")
    ] = "eager,onnx",
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="of every way, in turns")] = 30,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=1, help="that is timed; by default the examples'")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="cores of one pass on the CPU; by default all")
    ] = None,
) -> dict[str, Any]:
    """Time two models side by side in interleaved repeats, and say how large they are."""
    ways = names_in(modes)
    check_modes(ways)
    before, later = place_of(model), place_of(after)
    (dense, inputs), (small, _) = loaded(before, weights), loaded(later, None)
    given = examples(inputs, data, shape, before, dense, load or ())
    if batch_size is not None and not examples_in(given, none=0):
        raise ConfigError(f"--batch-size {batch_size}", "the example inputs have no batch", "leave it out")
    timed = given if batch_size is None else sized(given, batch_size)
    found = compare(dense, small, timed, modes=ways, repeats=repeats, threads=threads)
    plain = found.to_dict()
    table = Table(title=escape(f"{before} and {later}, {found.device}, {found.threads} threads"), title_justify="left")
    for name in ("", "before", "after", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    sizes = ({"params": count} for count in found.parameters)
    for row in changes({**dict(zip(("before", "after"), sizes, strict=True)), "speed": plain}):
        table.add_row(*map(escape, row))
    show(table)
    for warning in found.warnings:
        say(f"warning: {warning}")
    return plain
