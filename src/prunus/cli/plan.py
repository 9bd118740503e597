"""`prunus plan`: what `compress` would do, before it takes its time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.recipes import from_recipe
from prunus.cli.terminal import say
from prunus.files.atomic import check_file
from prunus.pipeline.forecast import EXAMPLES, forecast
from prunus.pipeline.recipe import Recipe
from prunus.pipeline.run import understood


@from_recipe
def plan_command(
    recipe: Recipe,
    examples: Annotated[
        int, typer.Option("--examples", metavar="N", min=1, help="to look at, of the training and of the held-out part")
    ] = EXAMPLES,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="JSON file that the plan is written to")
    ] = None,
) -> dict[str, Any]:
    """Say what compress would remove, what that costs and about how long it takes; takes the same options."""
    order = understood(recipe, say)
    if save is not None:
        check_file(save)
    network, data = order.read(say)
    found = forecast(network, data, **order.asked, batch_size=order.run.batch_size, examples=examples)
    say(found.explain())
    if save is not None:
        found.plan.save(save)
        say(f"plan written to {save}")
    return found.to_dict()
