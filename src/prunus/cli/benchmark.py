"""`prunus benchmark`: two models timed side by side."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from prunus.cli.options import Examples, ModelSpec, Reads, Shape, Weights
from prunus.cli.terminal import say, show
from prunus.errors import ConfigError
from prunus.measure.speed import MODES, check_modes, compare
from prunus.pipeline.inputs import examples, loaded, place_of
from prunus.pipeline.texts import names_in
from prunus.reports.tables import changes


def benchmark_command(
    model: ModelSpec,
    after: Annotated[str, typer.Argument(metavar="AFTER", help="the other model: as MODEL, or the folder of a run")],
    data: Examples = None,
    load: Reads = None,
    shape: Shape = None,
    weights: Weights = None,
    modes: Annotated[
        str, typer.Option("--modes", metavar="NAMES", help=f"ways to run them, of {', '.join(MODES)}")
    ] = "eager,onnx",
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="of every way, in turns")] = 30,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=1, help="that is timed; by default the examples'")
    ] = None,
) -> dict[str, Any]:
    """Time two models side by side in interleaved repeats, and say how large they are."""
    ways = names_in(modes)
    check_modes(ways)
    before, later = place_of(model), place_of(after)
    (dense, inputs), (small, _) = loaded(before, weights), loaded(later, None)
    given = examples(inputs, data, shape, before, dense, load or ())
    timed = given if batch_size is None else resized(given, batch_size)
    found = compare(dense, small, timed, modes=ways, repeats=repeats)
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


def resized(inputs: Any, size: int) -> Any:
    """Example inputs of another batch size, examples repeated in turn. Raises ConfigError where there is no batch."""
    import torch
    from torch.utils._pytree import tree_map_only

    from prunus.runtime.arguments import examples_in

    there = examples_in(inputs, none=0)
    if not there:
        raise ConfigError(f"--batch-size {size}", "the example inputs have no batch", "leave it out")
    rows = torch.arange(size) % there

    def repeated(t: torch.Tensor) -> torch.Tensor:
        return t[rows.to(t.device)] if t.dim() and t.shape[0] == there else t

    return tree_map_only(torch.Tensor, repeated, inputs)
