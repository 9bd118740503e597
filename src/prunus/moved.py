"""Old addresses of modules, kept for one release: `prunus.datasets` is `prunus.data.datasets` now, and so on."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "allocation": ("plan.allocation",),
    "apply": ("proof.apply",),
    "attention": ("layers.attention",),
    "batches": ("data.batches",),
    "batchnorm": ("recovery.batchnorm",),
    "budget": ("plan.budget",),
    "calibrate": ("learning.measured",),
    "checkpoint": ("export.artifact",),
    "cost": ("plan.cost",),
    "datafiles": ("data.datafiles",),
    "datasets": ("data.datasets",),
    "demo": ("pipeline.demo",),
    "evaluate": ("data.evaluation",),
    "export_int8": ("export.int8",),
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
    "pretrained": ("export.pretrained", "models.huggingface"),
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


class OldAddresses(MetaPathFinder, Loader):
    """Finds a module under its old address, with a `DeprecationWarning` that names the new one."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """A spec for the old addresses alone."""
        package, _, old = name.rpartition(".")
        return ModuleSpec(name, self) if package == "prunus" and old in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Let the module look its names up where they are now."""
        places = tuple(f"prunus.{place}" for place in MOVED[module.__name__.rpartition(".")[2]])
        said = f"{module.__name__} has moved to {' and '.join(places)}; the old address goes with the next release"
        warnings.warn(said, DeprecationWarning, stacklevel=2)

        def look_up(name: str) -> Any:
            for place in places:
                found = importlib.import_module(place)
                if hasattr(found, name):
                    return getattr(found, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__dict__["__getattr__"] = look_up


sys.meta_path.append(OldAddresses())
