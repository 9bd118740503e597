"""transformers models: loaded in their own class, and, pruned, as folders that stock `from_pretrained` loads.

The latter where the class's configuration can say the widths. A configuration has one number for all layers, so that
every layer must have kept as many heads and neurons; the allocation `uniform` sees to that. What a configuration can't
say goes into an artifact (`checkpoint.save`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from prunus.atomic import StrPath, check_replaceable, real_path, refusing, replacing
from prunus.comparison import difference
from prunus.configuration import expressed
from prunus.entry import entry
from prunus.errors import ArtifactError, ConfigError, ExportError, MissingDependencyError, first_line
from prunus.plan import Plan
from prunus.verify import outputs


def import_transformers(where: str) -> Any:
    """The module `transformers`. Raises MissingDependencyError, naming `where`, if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        fix = "pip install 'prunus[hf]'"
        raise MissingDependencyError(where, f"transformers cannot be imported: {error}", fix) from error
    return transformers


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
    transformers = import_transformers(where)
    try:
        config: Any = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        what = f"its configuration cannot be read: {first_line(error)}"
        raise ConfigError(where, what, "give a folder with config.json, or a name on the hub") from error
    named = config.architectures
    kind = str(named[0]) if isinstance(named, list) and named else ""
    family: Any = getattr(transformers, kind, None) if kind else transformers.AutoModel
    if kind and not (isinstance(family, type) and issubclass(family, transformers.PreTrainedModel)):
        what = f"transformers has no class {kind!r}, and no code from outside is run"
        raise ConfigError(where, what, "write FILE.py:callable that makes the model")
    try:
        model: nn.Module = family.from_pretrained(name, trust_remote_code=False, weights_only=True).eval()
    except Exception as error:
        raise ConfigError(where, f"its weights cannot be loaded: {first_line(error)}", "check the folder") from error
    return model, _inputs_for(model)


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


@entry()
def save_pretrained(
    model: nn.Module, plan: Plan, directory: StrPath, example_inputs: Any, *, overwrite: bool = False
) -> Path:
    """Write a pruned transformers model so that `from_pretrained` of its own class loads it, and prove it.

    Args:
        model: the smaller model, still of its own class.
        plan: what was removed.
        directory: folder to write; it appears only after the loaded model was found to compute the same.
        example_inputs: keyword inputs to compare on.
        overwrite: take the place of a folder that is there.

    Returns:
        The folder.

    Raises:
        ConfigError: no transformers model, or its configuration can't say the widths; nothing is written.
        ArtifactError: the folder exists, or can't be written.
        ExportError: the loaded model computes something else.
    """
    config = expressed(model, plan)
    target = real_path(directory)
    with refusing(target):
        if target.exists() and any(target.iterdir()) and not overwrite:
            raise ArtifactError(str(target), "the folder exists and is not empty", "choose another folder")
        check_replaceable(target)
    with replacing(target) as temporary:
        write_pretrained(model, config, temporary, example_inputs)
    return Path(directory)


def write_pretrained(model: nn.Module, config: Any, folder: Path, example_inputs: Any) -> None:
    """Fill a folder for `from_pretrained` and compare what it loads; the model has its own configuration afterwards.

    Raises:
        ArtifactError: it can't be written.
        ExportError: the loaded model computes something else.
    """
    kept = model.config
    try:
        model.config = config
        model.save_pretrained(folder)  # type: ignore[operator]
        again = type(model).from_pretrained(folder).eval()  # type: ignore[attr-defined]
        error, tolerance = difference([outputs(model, example_inputs)], [outputs(again, example_inputs)])
    except SafetensorError as failure:
        what = f"cannot be written: {first_line(failure)}"
        raise ArtifactError(str(folder), what, "free space on the disk") from failure
    finally:
        model.config = kept
    if not error <= tolerance:
        raise ExportError(str(folder), f"the loaded model differs by {error:.1e} (relative)", "report the model")
