"""Pruned transformers models as folders that stock `from_pretrained` loads, where the configuration can say the widths.

A configuration has one number for all layers, so that every layer must have kept as many heads and neurons; the
allocation `uniform` sees to that. What a configuration can't say goes into an artifact (`prunus.save`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from prunus.errors import ArtifactError, ConfigError, ExportError, first_line
from prunus.files.atomic import StrPath, check_free, replacing
from prunus.formats.registry import Exportable, Exported, exporter
from prunus.plan.plan import Plan
from prunus.proof.comparison import difference
from prunus.runtime.calling import outputs
from prunus.runtime.entry import entry
from prunus.surgery.configuration import expressed

HUB = "hf:"
TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja")


@entry()
def save_pretrained(
    model: nn.Module, plan: Plan, directory: StrPath, example_inputs: Any, *, overwrite: bool = False
) -> Path:
    """Write a pruned transformers model so that `from_pretrained` of its own class loads it, and prove it.

    Args:
        model: the smaller model, still of its own class.
        plan: what was removed.
        directory: folder to write; it appears only after the loaded model was found to compute the same.
        example_inputs: keyword inputs to compare on.
        overwrite: take the place of a folder that is there.

    Returns:
        The folder.

    Raises:
        ConfigError: no transformers model, or its configuration can't say the widths; nothing is written.
        ArtifactError: the folder exists, or can't be written.
        ExportError: the loaded model computes something else.
    """
    config = expressed(model, plan)
    target = check_free(directory, overwrite)
    with replacing(target) as temporary:
        write_pretrained(model, config, temporary, example_inputs)
    return Path(directory)


def write_pretrained(model: nn.Module, config: Any, folder: Path, example_inputs: Any) -> None:
    """Fill a folder for `from_pretrained` and compare what it loads; the model has its own configuration afterwards.

    Raises:
        ArtifactError: it can't be written.
        ExportError: the loaded model computes something else.
    """
    kept = model.config
    try:
        model.config = config
        model.save_pretrained(folder)  # type: ignore[operator]
        again = type(model).from_pretrained(folder).eval()  # type: ignore[attr-defined]
        error, tolerance = difference([outputs(model, example_inputs)], [outputs(again, example_inputs)])
    except SafetensorError as failure:
        what = f"cannot be written: {first_line(failure)}"
        raise ArtifactError(str(folder), what, "free space on the disk") from failure
    finally:
        model.config = kept
    if not error <= tolerance:
        raise ExportError(str(folder), f"the loaded model differs by {error:.1e} (relative)", "report the model")


def _from_transformers(subject: Exportable) -> bool:
    return subject.origin.startswith(HUB)


@exporter(
    "pretrained", file="pretrained", help="a folder for from_pretrained of an hf: model", suits=_from_transformers
)
def write_folder_of_its_own(subject: Exportable, path: Path) -> Exported:
    """A folder for stock `from_pretrained` where the configuration can say the widths, with the tokenizer's files.

    Raises:
        ConfigError: no transformers model, or its configuration can't say the widths.
        ExportError: the loaded model computes something else.
    """
    if subject.plan is None:
        what = "what was removed from the model is not known here"
        raise ConfigError(
            "export 'pretrained'", what, "export it when it is compressed, or call prunus.save_pretrained"
        )
    config = expressed(subject.model, subject.plan)
    path.mkdir()
    write_pretrained(subject.model, config, path, subject.example_inputs)
    origin = Path(subject.origin.removeprefix(HUB))
    for file in origin.iterdir() if origin.is_dir() else ():
        if not (path / file.name).exists() and file.suffix in TOKENIZER_FILES:
            shutil.copy2(file, path)
    return Exported(path, None, "from_pretrained reads it")
