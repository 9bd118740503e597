"""The models that specs name; every kind of spec is registered in a file of this folder."""

from __future__ import annotations

from prunus.models.loaded import MODEL_SOURCES, LoadedModel, model_source
from prunus.models.registry import import_all

__all__ = ["LoadedModel", "load_model", "model_source"]

import_all("prunus.models")


@MODEL_SOURCES.documents
def load_model(spec: str) -> LoadedModel:
    """The model that a spec names.

    Args:
        spec: one of

            {kinds}

    Raises:
        ConfigError: a spec that names nothing, or a callable that fails or returns something else.
        MissingDependencyError: the package that a model comes from is not installed.

    Example:
        >>> from prunus.models import load_model
        >>> load_model("torch.nn:Identity").model
        Identity()
    """
    load, rest = MODEL_SOURCES.find(spec)
    return load(rest)
