"""transformers models in their own class, loaded or of a configuration alone, with example inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import ConfigError, first_line
from prunus.models.loaded import LoadedModel, model_source
from prunus.runtime.extras import from_extra


def load_pretrained(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model of the class that its configuration names, with its weights, and example inputs for it.

    Args:
        name: a folder, or a name on the hub.

    Returns:
        The model in eval mode; keyword inputs for a batch of two (random token ids, images or samples).

    Raises:
        MissingDependencyError: transformers is not installed.
        ConfigError: no such model, or one of a class of its own (no code from outside is run).
    """
    where = f"model 'hf:{name}'"
    transformers = from_extra("transformers", "hf", where)
    _, family = _configured(name, where)
    try:
        loader = transformers.AutoModel if family is None else family
        model: nn.Module = loader.from_pretrained(name, trust_remote_code=False, weights_only=True).eval()
    except Exception as error:
        raise ConfigError(where, f"its weights cannot be loaded: {first_line(error)}", "check the folder") from error
    return model, _inputs_for(model)


def from_configuration(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model without weights, on the device `meta`: it takes no memory, and can be analysed and planned.

    Args:
        name: a `config.json`, a folder with one, or a name on the hub.

    Returns:
        The model in eval mode, in the dtype that its configuration names; inputs as `load_pretrained` gives, on `meta`.

    Raises:
        MissingDependencyError: transformers is not installed.
        ConfigError: as `load_pretrained`.
    """
    where = f"model 'hf-config:{name}'"
    transformers = from_extra("transformers", "hf", where)
    config, family = _configured(name, where)
    try:
        with torch.device("meta"):
            made = (transformers.AutoModel.from_config if family is None else family)(config)
    except Exception as error:
        what = f"its class can't be made from it: {first_line(error)}"
        raise ConfigError(where, what, "check the configuration") from error
    dtype = getattr(config, "dtype", None)
    model: nn.Module = made.to(dtype).eval() if isinstance(dtype, torch.dtype) else made.eval()
    return model, {key: tensor.to("meta") for key, tensor in _inputs_for(model).items()}


def without_parameters(name: str, dtype: torch.dtype) -> nn.Module:
    """A model with its parameters on the device `meta`, and its buffers at hand.

    Args:
        name: as `from_configuration` takes it.
        dtype: of parameters and buffers.

    Raises:
        MissingDependencyError: transformers is not installed.
        ConfigError: as `load_pretrained`.
    """
    from accelerate import init_empty_weights

    where = f"model 'hf:{name}'"
    transformers = from_extra("transformers", "hf", where)
    config, family = _configured(name, where)
    with init_empty_weights(include_buffers=False):
        made: nn.Module = (transformers.AutoModel.from_config if family is None else family)(config)
    return made.to(dtype).eval()


def _configured(name: str, where: str) -> tuple[Any, Any]:
    """A configuration, and the class that it names, or None if it names none."""
    transformers = from_extra("transformers", "hf", where)
    try:
        config: Any = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        what = f"its configuration cannot be read: {first_line(error)}"
        raise ConfigError(where, what, "give a folder with config.json, or a name on the hub") from error
    named = config.architectures
    kind = str(named[0]) if isinstance(named, list) and named else ""
    family: Any = getattr(transformers, kind, None) if kind else None
    if kind and not (isinstance(family, type) and issubclass(family, transformers.PreTrainedModel)):
        what = f"transformers has no class {kind!r}, and no code from outside is run"
        raise ConfigError(where, what, "write FILE.py:callable that makes the model")
    return config, family


@model_source(
    "hf",
    form="hf:NAME_OR_DIR",
    help="a transformers model in the class its configuration names; no code from outside is run",
)
def from_transformers(name: str) -> LoadedModel:
    """What `load_pretrained` loads."""
    return LoadedModel(*load_pretrained(name), name)


@model_source(
    "hf-config",
    form="hf-config:FILE_OR_DIR",
    help="a transformers model of its configuration alone, without weights: to be analysed",
)
def without_weights(name: str) -> LoadedModel:
    """What `from_configuration` makes."""
    return LoadedModel(*from_configuration(name), name)


def _inputs_for(model: Any) -> dict[str, Tensor]:
    """Keyword inputs for a batch of two, of the sizes that the configuration names."""
    config, kind = model.config, model.main_input_name
    generator = torch.Generator().manual_seed(0)
    drawn: dict[str, Any] = {"generator": generator, "device": "cpu"}
    if kind == "input_ids":
        length = min(16, getattr(config, "max_position_embeddings", None) or 16)
        ids = torch.randint(0, config.get_text_config().vocab_size, (2, length), **drawn)
        return {"input_ids": ids, **({"decoder_input_ids": ids[:, :8]} if config.is_encoder_decoder else {})}
    if kind == "pixel_values":
        size = getattr(config, "image_size", None) or 224
        height, width = size if isinstance(size, list | tuple) else (size, size)
        channels = getattr(config, "num_channels", 3)
        return {"pixel_values": torch.randn(2, channels, height, width, dtype=torch.float32, **drawn)}
    if kind == "input_values":
        return {"input_values": torch.randn(2, 16_000, dtype=torch.float32, **drawn)}
    what = f"a {type(model).__name__} starts from {kind!r}"
    raise ConfigError("example inputs", what, "write FILE.py:callable that returns (model, example inputs)")
