"""`export()`: one model into one file, in any of the registered forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from prunus.data.datasets import Part, first_of
from prunus.errors import ConfigError
from prunus.files.atomic import StrPath
from prunus.formats.registry import COMPARED, EXPORTERS, Exportable, Exported, Exporter, exporter_for
from prunus.models.registry import import_all
from prunus.plan.plan import Plan
from prunus.proof.weightmasks import layer_masks
from prunus.runtime.entry import entry


@entry()
def export(
    model: nn.Module,
    example_inputs: Any,
    path: StrPath,
    *,
    form: str | None = None,
    plan: Plan | None = None,
    calibration: Part | None = None,
) -> Exported:
    """Write a model in a form for other tools, and compare the file with the model where the form can be run.

    Args:
        model: pruned or not; exported in eval mode.
        example_inputs: inputs to export with, batch first; the batch size of the file is free.
        path: file or folder to write; it appears only when it is whole.
        form: name of an exporter (`onnx`, `pt2`, ...; `prunus.formats.EXPORTERS`); None: what the path's suffix says.
        plan: how the model was made smaller, for forms that ask for it (`pretrained`).
        calibration: real examples, a data set or batches, of which the first 64 are taken: `int8` finds its grids on
            half of them, and compares on the other half.

    Returns:
        The path, the largest relative difference from the model, and one line about it.

    Raises:
        ConfigError: an unknown form or suffix, or a model that can't leave in this form.
        MissingDependencyError: a package that the form needs is not installed.
        ExportError: the file does not agree with the model, or can't be written.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> small = prunus.prune(net, torch.randn(2, 8), method="l1", target="macs<=50%").model
        >>> prunus.export(small, torch.randn(2, 8), "small.pt2").note
        'a program for torch.export.load'
    """
    batch = None if calibration is None else first_of(calibration, COMPARED, model)
    subject = Exportable(model, example_inputs, plan, {} if plan is None else layer_masks(plan), batch=batch)
    return exporter_of(Path(path), form)(subject, path)


def exporter_of(path: Path, form: str | None) -> Exporter:
    """The exporter of a name, or that of a path's suffix. Raises ConfigError if there is none."""
    import_all("prunus.formats")
    if form is None:
        return exporter_for(path)
    if form not in EXPORTERS:
        raise ConfigError(f"form {form!r}", "there is none of that name", f"use one of {', '.join(EXPORTERS)}")
    return EXPORTERS[form]
