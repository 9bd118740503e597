"""`run(recipe)`: a whole run from its text. All that can be refused is refused before model and data are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from prunus.data.datasets import DataSource, first_of
from prunus.data.registry import Reading
from prunus.errors import PruneError
from prunus.files.atomic import StrPath
from prunus.formats.exports import Choice, add_exports
from prunus.formats.registry import COMPARED, Exportable
from prunus.formats.run import check_run_folder
from prunus.masks.patterns import check_patterns
from prunus.methods.base import MaskMethod, Method
from prunus.methods.registry import resolve
from prunus.methods.settings import as_text, configure
from prunus.pipeline.compress import Compression, compress
from prunus.pipeline.inputs import data_for, loaded, place_of
from prunus.pipeline.recipe import RECIPE, Recipe
from prunus.pipeline.settings import RunSettings, silent
from prunus.pipeline.texts import allocation_of, exports_of, label_free, recovery_of, repair_of, run_of, target_of
from prunus.pipeline.tracking import check_trackers
from prunus.plan.allocation import Allocation
from prunus.plan.request import Target, allowed, requested
from prunus.recovery.config import FinetuneConfig
from prunus.refit.config import RepairConfig
from prunus.runtime.fields import as_seed
from prunus.runtime.progress import Say


@dataclass(frozen=True)
class Order:
    """A recipe, understood: what `compress` takes, apart from model and data."""

    recipe: Recipe
    method: Method
    target: Target | None
    allocation: Allocation | None
    repair: bool | RepairConfig
    recovery: FinetuneConfig | None
    exports: Choice
    labelled: bool
    run: RunSettings
    place: str

    @property
    def asked(self) -> dict[str, Any]:
        """What `compress` and `forecast` both take, by name."""
        return {
            "method": self.method,
            "target": self.target,
            "ignored_layers": self.recipe.ignore,
            "allow": self.recipe.allow,
            "allocation": self.allocation,
            "repair": self.repair,
            "recovery": self.recovery,
            "seed": self.recipe.seed,
        }

    def pinned(self) -> Recipe:
        """The recipe with the settings that were meant without a word, which another release may mean otherwise."""
        from prunus import __version__

        repair = RepairConfig() if self.repair is True else self.repair
        recover = () if self.recovery is None else tuple(as_text(self.recovery))
        return self.recipe.but(
            set=tuple(as_text(self.method)),
            repair=("none",) if repair is False else tuple(as_text(repair)),
            recover=recover or ("none",),
            run=tuple(s for s in self.recipe.run if s.partition("=")[0].strip() not in ("resume", "force")),
            prunus=__version__,
        )

    def read(self, say: Say) -> tuple[nn.Module, DataSource]:
        """The model and its data. Raises PruneError if they can't be had, or don't fit each other."""
        recipe = self.recipe
        network, _ = loaded(self.place, Path(recipe.weights) if recipe.weights else None)
        data = data_for(
            recipe.data, network, self.place, recipe.load, recipe.seed, labelled=self.labelled, say=say
        )  # fmt: skip
        return network, data


def understood(recipe: Recipe, say: Say = silent) -> Order:
    """What a recipe says, held against what there is, before model and data are read.

    Raises:
        PruneError: one of its kinds: an unknown method, setting, target or exporter, a package that is missing, or a
            folder that can't be written.
    """
    seed = as_seed(recipe.seed)
    method = resolve(recipe.method, recipe.set)
    target, allocation = target_of(recipe.target or None), allocation_of(recipe.allocate)
    recovery = recovery_of(recipe.recover, seed, default=not isinstance(method, MaskMethod))
    repair, exports = repair_of(recipe.repair), exports_of(recipe.export)
    labelled, how = not label_free(recipe.labels), run_of(recipe.run, exports, say)
    configure(Reading, recipe.load)
    asked = requested(target, allocation, method=method.name, takes=method.targets, optional=method.decides)
    check_patterns(asked.patterns)
    allowed(recipe.allow, method=method.name, takes=method.allows)  # type: ignore[arg-type]
    check_run_folder(recipe.out)
    check_trackers(how.track, recipe.out)
    place = place_of(recipe.model)
    return Order(recipe, method, target, allocation, repair, recovery, exports, labelled, how, place)


def run(recipe: Recipe | Mapping[str, Any] | StrPath, *, out: StrPath | None = None, say: Say = silent) -> Compression:
    """Make a whole run from a recipe: load, prune, recover, prove, measure, save, export.

    The folder holds `recipe.yaml`, with every setting of method, repair and recovery written out: the same run again
    gives the same weights on the same kind of machine, bit for bit.

    Args:
        recipe: YAML file, folder of a run, mapping, or `Recipe`; its parts are the options of `prunus compress`.
            Relative paths in it start from the current folder.
        out: folder to write, in place of the recipe's.
        say: receives a line of text at every step.

    Raises:
        PruneError: one of its kinds, before model and data are read where it can be. What an exporter that was asked
            for refuses is raised at the very end, when all else is saved.

    Example:
        >>> source = "import torch; from torch import nn"
        >>> net = "def net(): torch.manual_seed(0); return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))"
        >>> data = "def data(): return 2 * ([(torch.eye(6), torch.arange(6) % 3)],)"
        >>> _ = open("mine.py", "w").write("\\n".join([source, net, data]))
        >>> parts = {"model": "mine.py:net", "data": "mine.py:data", "method": "l1", "target": 0.5, "recover": "none"}
        >>> done = prunus.run({**parts, "export": "none", "run": {"modes": "eager"}}, out="small")
        >>> sorted(done.summary["kept"].values()), prunus.run("small").summary["kept"] == done.summary["kept"]
        ([[8, 16]], True)
    """
    done, failed = carried_out(understood(recipe_of(recipe, out), say), say)
    if failed is not None:
        raise failed
    return done


def recipe_of(recipe: Recipe | Mapping[str, Any] | StrPath, out: StrPath | None = None) -> Recipe:
    """A recipe from what names or holds one. Raises ConfigError if it is none."""
    if isinstance(recipe, str | os.PathLike):
        recipe = Recipe.load_file(recipe)
    elif isinstance(recipe, Mapping):
        recipe = Recipe.of(recipe)
    return recipe.but(out=None if out is None else os.fspath(out))


def carried_out(order: Order, say: Say, *, command: str = "") -> tuple[Compression, PruneError | None]:
    """`run`, of a recipe that is understood.

    Args:
        order: what was understood.
        say: receives a line of text at every step.
        command: what was typed, for the record.

    Returns:
        What was made, and the first refusal of an exporter that was asked for; all else is saved then.
    """
    recipe = order.recipe
    network, data = order.read(say)
    done = compress(network, data, **order.asked, out=recipe.out, run=order.run)
    if done.saved is not None:
        done.saved.add(RECIPE, order.pinned().to_text().encode())
        done.saved.add_summary({**done.summary, **({"command": command} if command else {})})
    return done, exported(done, data, order.exports, say, origin=order.place, data_spec=recipe.data)


def exported(
    done: Compression, data: DataSource, exports: Choice, say: Say, *, origin: str, data_spec: str
) -> PruneError | None:
    """Write what else is asked for into the folder of a run. Returns the first refusal of what was asked for."""
    if done.saved is None:
        return None
    masked = done.result.masked
    subject = Exportable(
        done.model,
        data.example_inputs,
        done.result.plan,
        done.masks,
        () if masked is None else tuple(masked.inputs),
        batch=first_of(data.validation, COMPARED, done.model),
        origin=origin,
        data=data_spec,
    )
    return add_exports(done.saved, subject, exports, say)
