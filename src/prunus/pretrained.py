"""Pruned transformers models as folders that stock `from_pretrained` loads, where the class's configuration can say it.

A configuration has one number for all layers, so that every layer must have kept as many heads and neurons; the
allocation `uniform` sees to that. What a configuration can't say goes into an artifact (`checkpoint.save`).
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunus.errors import ArtifactError, ConfigError, ExportError
from prunus.plan import Plan
from prunus.verify import difference, outputs

HEAD_KEYS = (
    "num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
    "decoder_attention_heads",
)  # fmt: skip
WIDTH_KEYS = (
    "intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim",
    "ffn_hidden_size",
)  # fmt: skip
"""Names under which configurations hold their number of heads, and the width of their feed-forward layers."""


def save_pretrained(model: nn.Module, plan: Plan, directory: str | os.PathLike[str], example_inputs: Any) -> Path:
    """Write a pruned transformers model so that `from_pretrained` of its own class loads it, and prove it.

    Args:
        model: the smaller model, still of its own class.
        plan: what was removed.
        directory: folder to write; it appears only after the loaded model was found to compute the same.
        example_inputs: keyword inputs to compare on.

    Returns:
        The folder.

    Raises:
        ConfigError: no transformers model, or its configuration can't say the widths; nothing is written.
        ArtifactError: the folder exists, or can't be written.
        ExportError: the loaded model computes something else.
    """
    if not hasattr(model, "config") or not hasattr(model, "save_pretrained"):
        what = f"a {type(model).__name__} has no configuration (a rewritten graph has lost its class)"
        raise ConfigError("save_pretrained", what, "save an artifact with prunus.save")
    config = expressed(model, plan)
    target = Path(directory)
    if target.exists() and any(target.iterdir()):
        raise ArtifactError(str(target), "the folder exists and is not empty", "choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=target.name + ".part-", dir=target.parent))
    kept = model.config
    try:
        model.config = config
        model.save_pretrained(temporary)  # type: ignore[operator]
        again = type(model).from_pretrained(temporary).eval()  # type: ignore[attr-defined]
        error, tolerance = difference([outputs(model, example_inputs)], [outputs(again, example_inputs)])
        if not error <= tolerance:
            raise ExportError(str(target), f"the loaded model differs by {error:.1e} (relative)", "report the model")
        temporary.chmod(0o755)
        if target.exists():
            target.rmdir()
        os.replace(temporary, target)
    except OSError as error:
        raise ArtifactError(str(target), f"cannot be written: {error}", "choose another folder") from error
    finally:
        model.config = kept
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def expressed(model: nn.Module, plan: Plan) -> Any:
    """The configuration of the smaller model.

    Raises:
        ConfigError: layers differ in what they keep, or no number of the configuration says what was removed.
    """
    config = copy.deepcopy(model.config)
    for key, value in _changes(config, plan).items():
        setattr(config, key, value)
    with torch.device("meta"):
        made = type(model)(config)
    wanted, found = ({n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (model, made))
    odd = sorted(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
    if odd:
        name = odd[0]
        what = f"{type(config).__name__} makes {name!r} {found.get(name)}, the pruned model has {wanted.get(name)}"
        fix = "prune with scope='uniform' and ignore the layers it has no number for, or save an artifact"
        raise ConfigError("save_pretrained", f"{what}: no number of the configuration says it", fix)
    return config


def _changes(config: Any, plan: Plan) -> Mapping[str, int]:
    """Numbers of the configuration that the plan changes, by what its groups kept."""
    changes: dict[str, int] = {}
    heads = {Fraction(len(g.kept), g.units) for g in plan.groups if g.heads_of is not None}
    if heads - {Fraction(1)}:
        share = min(heads)
        # The width of one head is derived from the number of heads unless the configuration holds it.
        counts = {k: getattr(config, k) for k in HEAD_KEYS if isinstance(getattr(config, k, None), int)}
        if getattr(config, "head_dim", None) is None and "num_attention_heads" in counts:
            changes["head_dim"] = config.hidden_size // counts["num_attention_heads"]
        changes |= {k: int(v * share) for k, v in counts.items()}
    others = {(g.units, len(g.kept)) for g in plan.groups if g.heads_of is None}
    for key in WIDTH_KEYS:
        old = getattr(config, key, None)
        for units, kept in others:
            if old == units or (old is None and key == "n_inner" and units == 4 * getattr(config, "n_embd", 0)):
                changes[key] = kept
    return changes
