"""The MODEL specs of the command line: FILE.py:callable, package.module:callable, timm:NAME or hf:NAME_OR_DIR."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus.errors import ConfigError, MissingDependencyError
from prunus.models.huggingface import load_pretrained
from prunus.models.specs import call, resolve

MODEL_FORMS = "FILE.py:callable, package.module:callable, timm:NAME or hf:NAME_OR_DIR"


@dataclass(frozen=True)
class LoadedModel:
    """What a model spec names.

    Attributes:
        model: the module, as the callable made it.
        example_inputs: inputs that came with it, batch first, or None.
        name: short name for reports and file names.
    """

    model: nn.Module
    example_inputs: Any | None
    name: str


def load_model(spec: str) -> LoadedModel:
    """The model that a spec names.

    Args:
        spec: `FILE.py:callable`, `package.module:callable` (the callable takes no argument and returns a module or
            `(module, example_inputs)`), `timm:NAME` (with its trained weights), or `hf:NAME_OR_DIR` (a transformers
            model in the class its configuration names; no code from outside is run).

    Raises:
        ConfigError: a spec that names nothing, or a callable that fails or returns something else.
        MissingDependencyError: timm or transformers is asked for and not installed.
    """
    if spec.startswith("hf:"):
        return LoadedModel(*load_pretrained(spec.removeprefix("hf:")), spec.removeprefix("hf:"))
    if spec.startswith("timm:"):
        return _timm_model(spec.removeprefix("timm:"))
    target = resolve(spec, MODEL_FORMS)
    made = target if isinstance(target, nn.Module) else call(target, spec)
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        fix = "return an nn.Module, or (module, example_inputs)"
        raise ConfigError(f"model {spec!r}", f"the callable returned {type(made).__name__}", fix)
    return LoadedModel(model, inputs, spec.rpartition(":")[2])


def _timm_model(name: str) -> LoadedModel:
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        where, fix = f"model 'timm:{name}'", "pip install 'prunus[timm]'"
        raise MissingDependencyError(where, f"timm cannot be imported: {error}", fix) from error
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:
        fix = "choose from timm.list_models(pretrained=True); the weights are downloaded at first use"
        raise ConfigError(f"model 'timm:{name}'", f"timm cannot make it: {error}", fix) from error
    size = tuple(model.default_cfg.get("input_size", (3, 224, 224)))
    generator = torch.Generator().manual_seed(0)
    return LoadedModel(model, torch.randn((2, *size), generator=generator, dtype=torch.float32, device="cpu"), name)
