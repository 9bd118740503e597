"""Artifacts: a folder that loads anywhere without pickles: weights, plan, captured program, model card.

artifact/
  manifest.json        format, versions, checksums, costs, metrics
  weights.safetensors  the smaller model's tensors under its own names
  plan.json            what was kept, and how each tensor was cut
  program.json         the captured program as plain data: runs without any of the user's code (if there is one)
  program.safetensors  tensors of the program that are no weights (if it has any)
  masks.safetensors    what is kept inside weights, as packed bits (only with patterns)
  README.md            the model card
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as stored_tensors
from torch import nn

from prunus.errors import ArtifactError, ConfigError, PruneError, first_line
from prunus.files.atomic import StrPath, check_replaceable, real_path, refusing, write_folder
from prunus.files.jsontext import strict_json
from prunus.files.manifest import MANIFEST, Manifest
from prunus.files.manifest import read_manifest as manifest_of
from prunus.files.steady import steady
from prunus.files.weightfile import load_weights_, unique_tensors
from prunus.formats.card import model_card
from prunus.formats.program.files import GRAPH, TENSORS, program_files, read_program
from prunus.masks.file import LayerMask, packed_masks, read_masks
from prunus.plan.plan import Plan
from prunus.proof.inputs import proof_inputs
from prunus.proof.weightmasks import layer_masks
from prunus.runtime.entry import check_model, entry
from prunus.surgery.configuration import keep_configuration_true_
from prunus.surgery.cut import check_plan, cut_
from prunus.surgery.rewrite import rewrite
from prunus.surgery.rewritten import RewrittenModel
from prunus.surgery.shallower import shorten_

FORMAT = 2
READABLE = (1, 2)
"""Formats that can be read; the first kept its program in a file that runs code when it is loaded."""
WEIGHTS, PLAN, CARD = "weights.safetensors", "plan.json", "README.md"
OLD_PROGRAM = "program.pt2"
MASKS = "masks.safetensors"


@entry()
def save(
    directory: StrPath,
    model: nn.Module,
    plan: Plan,
    *,
    metrics: Mapping[str, Any] | None = None,
    example_inputs: Any = None,
    masks: Mapping[str, LayerMask] | None = None,
) -> Path:
    """Write an artifact. An existing one is replaced in one step, once the new one is whole on the disk.

    Args:
        directory: folder to write. What it links to is replaced, not the link.
        model: the smaller model, as returned by `prune` or `apply_`, fine-tuned or not.
        plan: the plan that was applied.
        metrics: accuracies and the like for the model card; numbers and texts (NaN becomes null).
        example_inputs: inputs for capturing; random ones of the recorded shapes if absent.
        masks: what is kept inside weights, by layer, see `load_masks`; by default what the plan says.

    A model that can't be captured is saved without a program, with a warning: it loads with its factory alone.

    Returns:
        The folder.

    Raises:
        ArtifactError: the folder exists and is no artifact, or the disk refuses; nothing has changed then.
        ConfigError: no model, or metrics that are no numbers or texts.
        ConfigError: no plan.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 8)
        >>> plan = prunus.Plan.from_kept(prunus.trace(net, x), {"0": range(4)})
        >>> folder = prunus.save("smaller", prunus.apply_(net, plan, x), plan, metrics={"accuracy": 97.5})
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'manifest.json', 'plan.json', 'program.json', 'weights.safetensors']
    """
    check_place(directory)
    check_plan(plan)
    check_model(model)
    files = artifact_files(model, plan, metrics=metrics, example_inputs=example_inputs, masks=masks)
    return write_folder(directory, files)


def check_place(directory: StrPath) -> None:
    """Raise ArtifactError if something else stands where an artifact is to be written."""
    target = real_path(directory)
    with refusing(target):
        if not os.path.lexists(target):
            return
        if not target.is_dir():
            raise ArtifactError(str(target), "there is a file of that name", "choose another folder")
        if any(target.iterdir()) and not is_artifact(target):
            raise ArtifactError(str(target), "the folder exists and holds something else", "choose another folder")
        check_replaceable(target)


def missing_program(model: nn.Module, example_inputs: Any, *, follow_branches: bool = False) -> str | None:
    """Why an artifact of this model would have no program; None if it can be captured and said in plain data."""
    try:
        program_files(model, example_inputs, follow_branches=follow_branches)
    except Exception as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    return error.what if isinstance(error, PruneError) else first_line(error)


def artifact_files(
    model: nn.Module,
    plan: Plan,
    *,
    metrics: Mapping[str, Any] | None = None,
    example_inputs: Any = None,
    masks: Mapping[str, LayerMask] | None = None,
) -> dict[str, bytes]:
    """The files of an artifact by name, made in memory; see `save`."""
    files = {WEIGHTS: _weights(model), PLAN: plan.to_json().encode()}
    missing = None
    try:
        inputs = proof_inputs(plan, example_inputs, model)[0]
        files |= program_files(model, inputs, follow_branches=plan.followed)
    except Exception as error:  # whatever is wrong with it, weights and plan are not lost for it
        missing = _reason(error)
        warnings.warn(f"the artifact has no program and loads with its factory alone: {missing}", stacklevel=3)
    masks = layer_masks(plan) if masks is None else masks
    if masks:
        files[MASKS] = packed_masks(masks)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "model": plan.model,
        "rewritten": isinstance(model, RewrittenModel),
        "torch": torch.__version__,
        "before": vars(plan.before),
        "after": vars(plan.after),
        "no_program": missing,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    return files | description(manifest, plan, metrics or {}, masks)


def description(
    manifest: Mapping[str, Any], plan: Plan, metrics: Mapping[str, Any], masks: Mapping[str, LayerMask]
) -> dict[str, bytes]:
    """The model card and the manifest with these metrics."""
    card = model_card(plan, metrics, masks, manifest["no_program"])
    return {CARD: card.encode(), MANIFEST: strict_json({**manifest, "metrics": metrics}, "artifact").encode()}


@entry()
@steady
def load(directory: StrPath, factory: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Load an artifact, in eval mode.

    Args:
        directory: the artifact's folder.
        factory: makes the dense architecture with any weights; the smaller model is then of the user's own class.
            Without it the captured program is returned as a module, and none of the user's code is needed.

    Raises:
        ArtifactError: files are missing, truncated or damaged, or the factory makes another architecture.
        ConfigError: no path, or a factory that makes no model.

    Example:
        >>> def dense():
        ...     return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> net, x = dense(), torch.randn(2, 8)
        >>> plan = prunus.Plan.from_kept(prunus.trace(net, x), {"0": range(4)})
        >>> small = prunus.apply_(net, plan, x).eval()
        >>> folder = prunus.save("smaller", small, plan)
        >>> prunus.load(folder, dense)[0]  # of your own class
        Linear(in_features=8, out_features=4, bias=True)
        >>> torch.allclose(prunus.load(folder)(x), small(x))  # or without any of your code
        True
    """
    folder = real_path(directory)
    if factory is not None and (isinstance(factory, nn.Module) or not callable(factory)):
        what = f"a {type(factory).__name__} makes no model"
        raise ConfigError("factory", what, "give the class of the dense model, or a function without arguments")
    manifest = read_manifest(folder)
    if factory is None:
        if GRAPH not in manifest.sha256:
            raise _no_program(folder, manifest)
        return read_program(folder, folder / WEIGHTS, own_tensors=TENSORS in manifest.sha256)
    plan = Plan.load(folder / PLAN)
    model = factory()
    check_model(model)
    try:
        if manifest.rewritten:
            model = rewrite(model, plan, proof_inputs(plan, None, model)[0])
        else:
            cut_(model, plan)
            shorten_(model, plan.removal)
    except PruneError as error:
        raise ArtifactError(
            str(folder),
            f"made for another architecture ({plan.model}) than the factory's {type(model).__name__}: {error.what}",
            "pass the factory of the dense model that was compressed; of the last of several rounds, that of the round "
            "before it: lambda: prunus.load(folder_before, factory)",
        ) from error
    load_weights_(model, folder / WEIGHTS)
    keep_configuration_true_(model, plan)
    return model.eval()


@entry()
@steady
def load_masks(directory: StrPath) -> dict[str, LayerMask]:
    """What an artifact keeps inside its weights, by layer; empty if it has no masks.

    Raises:
        ArtifactError: the artifact is damaged.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(2, 8)
        >>> plan = prunus.Plan.from_kept(prunus.trace(net, x), {"0": range(4)})
        >>> prunus.load_masks(prunus.save("smaller", prunus.apply_(net, plan, x), plan))
        {}
    """
    folder = real_path(directory)
    return read_masks(folder / MASKS) if MASKS in read_manifest(folder).sha256 else {}


@steady
def read_manifest(directory: StrPath) -> Manifest:
    """The manifest, after every file's checksum was found right. Raises ArtifactError otherwise."""
    known = (WEIGHTS, PLAN, MASKS, GRAPH, TENSORS, OLD_PROGRAM)
    return manifest_of(Path(directory), READABLE, (WEIGHTS, PLAN), known)


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """True if the path is a folder with a manifest."""
    return (Path(path) / MANIFEST).is_file()


def _no_program(folder: Path, manifest: Manifest) -> ArtifactError:
    fix = "pass the factory of the dense model: prunus.load(folder, factory)"
    beside = folder / "pretrained"
    if (beside / "config.json").is_file():
        fix = f"read {beside} with from_pretrained (hf:{beside} on the command line); or {fix}"
    if OLD_PROGRAM in manifest.sha256:
        what = "it was saved by an older prunus, whose program.pt2 runs code of whoever made it when it is loaded"
        return ArtifactError(str(folder), what, f"{fix}; or read program.pt2 with torch.export.load if you trust it")
    return ArtifactError(str(folder), f"it was saved without a program: {manifest.no_program}", fix)


def _weights(model: nn.Module) -> bytes:
    """Tensors under their first name; tied ones are stored once, views of one memory each for itself."""
    stored, memory = {}, set()
    for name, tensor in unique_tensors(model).items():
        value = tensor.detach().cpu().contiguous()
        stored[name] = value.clone() if value.untyped_storage().data_ptr() in memory else value
        memory.add(value.untyped_storage().data_ptr())
    try:
        return stored_tensors(stored, metadata={"format": "pt"})
    except Exception as error:  # of a dtype or layout that the format doesn't know
        what = f"its tensors can't be stored: {first_line(error)}"
        raise ArtifactError(f"model {type(model).__name__}", what, "use dense tensors of common dtypes") from error
