"""Models of timm, with their trained weights."""

from __future__ import annotations

import torch

from prunus.errors import ConfigError
from prunus.models.loaded import LoadedModel, model_source
from prunus.runtime.extras import from_extra


@model_source("timm", form="timm:NAME", help="a model of timm with its trained weights")
def from_timm(name: str) -> LoadedModel:
    """A model of timm and two random images of the size that it was trained on.

    Raises:
        MissingDependencyError: timm is not installed.
        ConfigError: timm has no such model, or can't make it.
    """
    timm = from_extra("timm", "timm", f"model 'timm:{name}'")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:
        fix = "choose from timm.list_models(pretrained=True); the weights are downloaded at first use"
        raise ConfigError(f"model 'timm:{name}'", f"timm cannot make it: {error}", fix) from error
    size = tuple(model.default_cfg.get("input_size", (3, 224, 224)))
    generator = torch.Generator().manual_seed(0)
    return LoadedModel(model, torch.randn((2, *size), generator=generator, dtype=torch.float32, device="cpu"), name)
