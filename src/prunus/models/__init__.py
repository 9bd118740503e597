"""Where models come from."""

from prunus.models.sources import LoadedModel, load_model, model_source

__all__ = ["LoadedModel", "load_model", "model_source"]
