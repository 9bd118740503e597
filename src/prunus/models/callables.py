"""Models that a callable of the user's makes."""

from __future__ import annotations

from torch import nn

from prunus.errors import ConfigError
from prunus.models.loaded import MODEL_SOURCES, LoadedModel, model_source
from prunus.models.specs import call, resolve


@model_source(
    "",
    form="FILE.py:callable, package.module:callable",
    help="without arguments, it returns a module or (module, example inputs)",
)
def made_by_callable(spec: str) -> LoadedModel:
    """The model that a callable returns, or the module that the spec names itself.

    Raises:
        ConfigError: no such callable, or one that fails or returns something else.
    """
    target = resolve(spec, MODEL_SOURCES.forms())
    made = target if isinstance(target, nn.Module) else call(target, spec)
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        fix = "return an nn.Module, or (module, example_inputs)"
        raise ConfigError(f"model {spec!r}", f"the callable returned {type(made).__name__}", fix)
    return LoadedModel(model, inputs, spec.rpartition(":")[2])
