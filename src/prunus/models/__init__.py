"""Where models come from."""

from prunus.models.sources import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model"]
