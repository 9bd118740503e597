"""`prunus compress`: from a trained model and its data to a folder with a smaller one."""

from __future__ import annotations

from typing import Any

from prunus.cli.finish import told
from prunus.cli.recipes import from_recipe
from prunus.cli.terminal import command, say
from prunus.pipeline.recipe import Recipe
from prunus.pipeline.run import carried_out, understood


@from_recipe
def compress_command(recipe: Recipe) -> dict[str, Any]:
    """Compress a trained model, recover its accuracy, prove, measure and save it."""
    done, failed = carried_out(understood(recipe, say), say, command=command.get())
    told(done)
    if failed is not None:
        raise failed
    return {**done.summary, "directory": str(done.directory)}
