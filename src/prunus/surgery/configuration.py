"""What the configuration of a transformers model can say of a pruned one, and what keeps a folder from saying else."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from prunus.errors import ConfigError, first_line
from prunus.files.atomic import write_text
from prunus.plan.plan import Plan
from prunus.surgery.experts import say_experts_
from prunus.surgery.featurewidths import keep_feature_widths_true_

UNSAID = "pruned by Prunus to widths that no configuration says: use prunus.save and prunus.load"
HEAD_KEYS = (
    "num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
    "decoder_attention_heads",
)  # fmt: skip
WIDTH_KEYS = (
    "intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim",
    "ffn_hidden_size",
)  # fmt: skip
"""Names under which configurations hold their number of heads, and the width of their feed-forward layers."""


def keep_configuration_true_(model: nn.Module, plan: Plan) -> None:
    """Let the configuration of a pruned transformers model say its widths, or what a timm model says of its features.

    Other models are left alone. Where a configuration can't, the model's `save_pretrained` (and with it
    `Trainer.save_model`) goes on to write its weights, which a trainer resumes from, but a configuration that
    `from_pretrained` refuses: the dense one would give a model of the old widths, new at random wherever something was
    removed.
    """
    keep_feature_widths_true_(model, plan)
    if not hasattr(model, "config") or not hasattr(model, "save_pretrained"):
        return
    try:
        said = expressed(model, plan)
    except ConfigError:
        model.save_pretrained = _Unsaid(model)  # type: ignore[assignment]
        return
    say_experts_(model.config, plan)
    for key in (*HEAD_KEYS, *WIDTH_KEYS, "head_dim"):
        if getattr(said, key, None) != getattr(model.config, key, None):
            setattr(model.config, key, getattr(said, key))


class _Unsaid:
    """In place of a model's `save_pretrained`: the same, with a configuration that says it can't be loaded so."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        made = cast(Any, type(self.model)).save_pretrained(self.model, save_directory, *args, **kwargs)
        path = Path(save_directory) / "config.json"
        if path.is_file():
            write_text(path, json.dumps({**json.loads(path.read_text()), "dtype": UNSAID}, indent=2))
        return made


def expressed(model: nn.Module, plan: Plan) -> Any:
    """The configuration of the smaller model.

    Raises:
        ConfigError: it has none, layers differ in what they keep, or no number says what was removed.
    """
    if not hasattr(model, "config") or not hasattr(model, "save_pretrained"):
        what = f"a {type(model).__name__} has no configuration (a rewritten graph has lost its class)"
        raise ConfigError("save_pretrained", what, "save an artifact with prunus.save")
    said = copy.deepcopy(model.config)
    say_experts_(said, plan)
    if not _disagreement(model, said):
        return said
    for key, value in _changes(said, plan).items():
        setattr(said, key, value)
    if what := _disagreement(model, said):
        fix = "prune with scope='uniform' and ignore the layers it has no number for, or save an artifact"
        raise ConfigError("save_pretrained", what, fix)
    return said


def _disagreement(model: nn.Module, config: Any) -> str:
    """What a model made from the configuration has otherwise than this one; empty if nothing."""
    name = type(config).__name__
    try:
        if hasattr(config, "validate"):
            config.validate()  # as it is on saving and on loading
        with torch.device("meta"):
            made = type(model)(config)
    except Exception as error:  # configurations check themselves: the heads must divide the width, and the like
        return f"{name} can't say what was kept: {first_line(error.__cause__ or error)}"
    wanted, found = ({n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (model, made))
    odd = sorted(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
    if not odd:
        return ""
    makes = f"{name} makes {odd[0]!r} {found.get(odd[0])}, the pruned model has {wanted.get(odd[0])}"
    return f"{makes}: no number of the configuration says it"


def _changes(config: Any, plan: Plan) -> Mapping[str, int]:
    """Numbers of the configuration that the plan changes, by what its groups kept."""
    changes: dict[str, int] = {}
    heads = {Fraction(len(g.kept), g.units) for g in plan.groups if g.heads_of is not None}
    if heads - {Fraction(1)}:
        share = min(heads)
        # The width of one head is derived from the number of heads unless the configuration holds it.
        counts = {k: getattr(config, k) for k in HEAD_KEYS if isinstance(getattr(config, k, None), int)}
        width = getattr(config, "hidden_size", None)
        if getattr(config, "head_dim", None) is None and "num_attention_heads" in counts and isinstance(width, int):
            changes["head_dim"] = width // counts["num_attention_heads"]
        # A single head of keys for all queries stays: its share is no whole number.
        changes |= {k: int(v * share) for k, v in counts.items() if (v * share).denominator == 1}
    others = {(g.units, len(g.kept)) for g in plan.groups if g.heads_of is None and g.experts_of is None}
    for key in WIDTH_KEYS:
        old = getattr(config, key, None)
        for units, kept in others:
            if old == units or (old is None and key == "n_inner" and units == 4 * getattr(config, "n_embd", 0)):
                changes[key] = kept
    return changes
