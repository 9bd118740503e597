"""Artifacts: a folder that loads anywhere without pickles: weights, plan, captured program, model card.

artifact/
  manifest.json        format, versions, checksums, costs, metrics
  weights.safetensors  the smaller model's tensors under its own names
  plan.json            what was kept, and how each tensor was cut
  program.pt2          the captured program: runs without any of the user's code
  masks.safetensors    what is kept inside weights, as packed bits (only with patterns)
  README.md            the model card
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunus.atomic import swap
from prunus.configuration import keep_configuration_true_
from prunus.errors import ArtifactError, PruneError
from prunus.export import export_program, load_program
from prunus.maskfile import LayerMask, read_masks, write_masks
from prunus.plan import Plan
from prunus.rewrite import RewrittenModel, rewrite
from prunus.surgery import cut_
from prunus.verify import proof_inputs

FORMAT = 1
WEIGHTS, PLAN, PROGRAM, CARD, MANIFEST = "weights.safetensors", "plan.json", "program.pt2", "README.md", "manifest.json"
MASKS = "masks.safetensors"


def save(
    directory: str | os.PathLike[str],
    model: nn.Module,
    plan: Plan,
    *,
    metrics: Mapping[str, Any] | None = None,
    example_inputs: Any = None,
    masks: Mapping[str, LayerMask] | None = None,
) -> Path:
    """Write an artifact. An existing one is replaced only once the new one is whole.

    Args:
        directory: folder to write.
        model: the smaller model, as returned by `prune` or `apply_`, fine-tuned or not.
        plan: the plan that was applied.
        metrics: accuracies and the like for the model card; JSON-serialisable.
        example_inputs: inputs for capturing; random ones of the recorded shapes if absent.
        masks: what is kept inside weights, by layer; see `load_masks`.

    Returns:
        The folder.

    Raises:
        ArtifactError: the folder exists and is no artifact, or the disk refuses.
    """
    target = Path(directory)
    if target.exists() and not (target / MANIFEST).exists() and any(target.iterdir()):
        raise ArtifactError(str(target), "the folder exists and holds something else", "choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=target.name + ".part-", dir=target.parent))
    temporary.chmod(0o755)
    try:
        save_file(_unique_tensors(model), temporary / WEIGHTS, metadata={"format": "pt"})
        plan.save(temporary / PLAN)
        inputs = proof_inputs(plan, example_inputs, model)[0]
        export_program(model, inputs, temporary / PROGRAM, follow_branches=plan.followed)
        if masks:
            write_masks(temporary / MASKS, masks)
        (temporary / CARD).write_text(_card(model, plan, metrics or {}, masks or {}))
        manifest = {
            "format": FORMAT,
            "model": plan.model,
            "rewritten": isinstance(model, RewrittenModel),
            "torch": torch.__version__,
            "before": vars(plan.before),
            "after": vars(plan.after),
            "metrics": dict(metrics or {}),
            "sha256": {
                name: _digest(temporary / name)
                for name in (WEIGHTS, PLAN, PROGRAM, MASKS)
                if (temporary / name).exists()
            },
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2))
        swap(temporary, target)
    except OSError as error:
        raise ArtifactError(
            str(target), f"cannot be written: {error}", "free the disk or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def load(directory: str | os.PathLike[str], factory: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Load an artifact, in eval mode.

    Args:
        directory: the artifact's folder.
        factory: makes the dense architecture with any weights; the smaller model is then of the user's own class.
            Without it the captured program is returned as a module, and none of the user's code is needed.

    Raises:
        ArtifactError: files are missing, truncated or damaged, or the factory makes another architecture.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    if factory is None:
        return load_program(folder / PROGRAM)
    plan = Plan.load(folder / PLAN)
    model = factory()
    try:
        if manifest["rewritten"]:
            model = rewrite(model, plan, proof_inputs(plan, None, model)[0])
        else:
            cut_(model, plan)
    except PruneError as error:
        raise ArtifactError(
            str(folder),
            f"made for another architecture ({plan.model}) than the factory's {type(model).__name__}: {error.what}",
            "pass the factory of the dense model that was compressed",
        ) from error
    _load_weights(model, folder)
    keep_configuration_true_(model, plan)
    return model.eval()


def load_masks(directory: str | os.PathLike[str]) -> dict[str, LayerMask]:
    """What an artifact keeps inside its weights, by layer; empty if it has no masks.

    Raises:
        ArtifactError: the artifact is damaged.
    """
    folder = Path(directory)
    return read_masks(folder / MASKS) if MASKS in read_manifest(folder)["sha256"] else {}


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest, after every file's checksum was found right. Raises ArtifactError otherwise."""
    folder = Path(directory)
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        digests = manifest["sha256"]
        if manifest["format"] != FORMAT:
            raise ArtifactError(str(folder), f"unknown format {manifest['format']}", "install a newer prunus")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            str(folder), f"its {MANIFEST} is missing or damaged: {error}", "give the folder that prunus saved"
        ) from error
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(str(path), "the file is missing", "copy the whole artifact again")
        if _digest(path) != digest:
            raise ArtifactError(str(path), "the file is truncated or damaged (checksum)", "copy the artifact again")
    return manifest


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """True if the path is a folder with a manifest."""
    return (Path(path) / MANIFEST).is_file()


def _unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors under their first name; tied ones are stored once."""
    seen: set[int] = set()
    tensors = {}
    persistent = model.state_dict(keep_vars=True)
    for name, tensor in persistent.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def _load_weights(model: nn.Module, folder: Path) -> None:
    try:
        stored = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(str(folder / WEIGHTS), f"cannot be read: {error}", "copy the artifact again") from error
    wanted = _first_names(model)
    shapes = {n: tuple(t.shape) for n, t in stored.items()}
    expected = {n: tuple(t.shape) for n, t in wanted.items()}
    if shapes != expected:
        odd = sorted(n for n in {*shapes, *expected} if shapes.get(n) != expected.get(n))
        raise ArtifactError(
            str(folder),
            f"its tensors don't fit the factory's model, first {odd[0]!r}: stored {shapes.get(odd[0])}, "
            f"expected {expected.get(odd[0])}",
            "pass the factory of the dense model that was compressed",
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])


def _first_names(model: nn.Module) -> dict[str, Tensor]:
    seen: set[int] = set()
    names = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            names[name] = tensor
    return names


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def _card(model: nn.Module, plan: Plan, metrics: Mapping[str, Any], masks: Mapping[str, LayerMask]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in metrics.items())
    table = f"\n| metric | value |\n|---|---|\n{rows}\n" if rows else ""
    lines = [f"| {name} | {m.pattern} | {m.kept:,} of {m.mask.numel():,} |" for name, m in masks.items()]
    inside = "\n".join(["\n| weight | pattern | kept |", "|---|---|---|", *lines, ""]) if masks else ""
    return f"""# {plan.model}, compressed by Prunus

Made from a dense {plan.model} by removing units for good ({plan.method}; asked: {plan.asked or "counts by hand"}).

| | before | after |
|---|---|---|
| MACs per example | {plan.before.macs:,} | {plan.after.macs:,} |
| parameters | {plan.before.params:,} | {plan.after.params:,} |
{table}
Load with the dense model's factory, `prunus.load(folder, factory)`, or without any of its code, `prunus.load(folder)`.

```
{plan.explain()}
```
{inside}"""
