"""Old addresses of modules, kept for one release: `prunus.datasets` is `prunus.data.datasets` now, and so on."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from prunus.names import PLACES, look_up

MOVED: dict[str, tuple[str, ...]] = {
    "allocation": ("plan.allocation",),
    "apply": ("proof.apply",),
    "attention": ("layers.attention",),
    "batches": ("data.batches",),
    "batchnorm": ("recovery.batchnorm",),
    "budget": ("plan.budget",),
    "calibrate": ("learning.measured",),
    "checkpoint": ("formats.artifact",),
    "cost": ("plan.cost",),
    "datafiles": ("data.datafiles",),
    "datasets": ("data.datasets",),
    "demo": ("pipeline.demo",),
    "evaluate": ("data.evaluation",),
    "export": ("formats",),
    "export_int8": ("formats.int8",),
    "finetune": ("recovery.finetuning",),
    "finetuneconfig": ("recovery.config",),
    "fold": ("surgery.fold",),
    "frozen": ("gates.frozen",),
    "gate": ("gates.gate",),
    "inputs": ("layers.inputs",),
    "livememory": ("measure.memory",),
    "losses": ("data.losses",),
    "optimizer": ("surgery.optimizer",),
    "packing": ("sparse.choose",),
    "parallel": ("runtime.processes",),
    "precision": ("runtime.precision",),
    "pretrained": ("formats.pretrained", "models.huggingface"),
    "quantize": ("masks.quantize",),
    "recurrence": ("layers.recurrence",),
    "recursive": ("learning.stages",),
    "rewrite": ("surgery.rewrite",),
    "rewritten": ("surgery.rewritten",),
    "sources": ("models.sources", "data.sources", "data.datasets"),
    "submodules": ("layers.submodules",),
    "texts": ("data.texts",),
    "tune": ("recovery.tune",),
    "verify": ("proof.verification", "runtime.calling"),
}
"""Old module -> the modules that hold its names now."""
PACKAGES = ("export",)
"""Those that were rooms, with modules inside."""


class Moved(ModuleType):
    """A module under its old address. It can be called where a public function has taken its name meanwhile."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The public function of that name. Raises TypeError if there is none."""
        name = self.__name__.removeprefix("prunus.")
        if name not in PLACES:
            raise TypeError(f"module {self.__name__!r} is not callable")
        return look_up(name)(*args, **kwargs)


class OldAddresses(MetaPathFinder, Loader):
    """Finds a module under its old address, with a `DeprecationWarning` that names the new one."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """A spec for the old addresses alone."""
        package, _, old = name.partition(".")
        if package != "prunus" or old.partition(".")[0] not in MOVED or ("." in old and places_of(name) == ()):
            return None
        return ModuleSpec(name, self, is_package=old in PACKAGES)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module that can be called; see `Moved`."""
        return Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Let the module look its names up where they are now."""
        places = places_of(module.__name__)
        said = f"{module.__name__} has moved to {' and '.join(places)}; the old address goes with the next release"
        warnings.warn(said, DeprecationWarning, stacklevel=2)

        def found_now(name: str) -> Any:
            for place in places:
                found = importlib.import_module(place)
                if hasattr(found, name):
                    return getattr(found, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__dict__["__getattr__"] = found_now


def places_of(name: str) -> tuple[str, ...]:
    """Where the names of an old module are now; of a module in a room that moved, in the room's new place."""
    old, _, inner = name.removeprefix("prunus.").partition(".")
    found = tuple(f"prunus.{place}{'.' * bool(inner)}{inner}" for place in MOVED[old])
    return tuple(place for place in found if not inner or importlib.util.find_spec(place) is not None)


sys.meta_path.append(OldAddresses())
