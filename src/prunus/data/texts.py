"""Plain text as data for a language model: cut by the model's own tokenizer into sequences of one length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.data.datasets import DataSource, next_tokens
from prunus.data.registry import DataRequest, data_source
from prunus.errors import ConfigError, DataError, first_line
from prunus.runtime.extras import from_extra

LENGTH = 128
TEST = 0.1
TOKENIZER = "tokenizer"
"""Folder of an artifact that holds the tokenizer of its model."""
Tokenize = Callable[[str], list[int]]


def tokenizer_of(name: str) -> Tokenize:
    """The tokenizer of a transformers model as a function, without special tokens; see `load_tokenizer`."""
    tokenizer = load_tokenizer(name)
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a transformers model.

    Args:
        name: a folder, or a name on the hub.

    Raises:
        MissingDependencyError: transformers is not installed.
        ConfigError: there is no tokenizer.
    """
    where = f"tokenizer of 'hf:{name}'"
    transformers = from_extra("transformers", "hf", where)
    try:
        return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        fix = "put its files beside the model, or give FILE.py:callable that returns a DataSource of tokens"
        raise ConfigError(where, f"it cannot be loaded: {first_line(error)}", fix) from error


def plain_text(path: Path) -> str:
    """The contents of a file in UTF-8. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"cannot be read as text: {error}", "give a UTF-8 text file") from error


def read_text(path: Path, tokenize: Tokenize, *, validation: float | int, length: int = LENGTH) -> DataSource:
    """A text file as sequences; its last tenth is the test split, validation is what comes before.

    Nothing is shuffled between the parts, so that none has seen the others' neighbouring sentences.

    Args:
        path: UTF-8 text.
        tokenize: text -> token ids.
        validation: fraction or number of the learning sequences held out.
        length: tokens that are predicted per sequence.

    Raises:
        DataError: the file cannot be read, or is too short for three parts.
        ConfigError: a validation split that leaves nothing.
    """
    ids = torch.tensor(tokenize(plain_text(path)), dtype=torch.int64, device="cpu")
    count = (len(ids) - 1) // length
    if count < 10:
        what = f"{len(ids)} tokens make {count} sequences of {length}"
        raise DataError(str(path), what, "give a longer text")
    # Each sequence ends with the token that the next one starts from.
    rows = torch.stack([ids[i * length : (i + 1) * length + 1] for i in range(count)])
    learned, tested = rows[: count - round(TEST * count)], rows[count - round(TEST * count) :]
    held = round(validation * len(learned)) if isinstance(validation, float) else validation
    if not 0 < held < len(learned):
        fix = "give a fraction between 0 and 1, or a smaller number"
        raise ConfigError(f"validation={validation}", f"it would hold out {held} of {len(learned)} sequences", fix)
    return _source(path.stem, learned[:-held], learned[-held:], tested)


def _source(name: str, *parts: Tensor) -> DataSource:
    train, validation, test = (next_tokens(p) for p in parts)
    return DataSource(name, train, validation, test, int(max(p.max() for p in parts)) + 1)


@data_source(
    "text",
    form="text:FILE",
    help="UTF-8, cut by the tokenizer of the hf: model into sequences of 128, in their order",
    reads=("length",),
)
def text(file: str, asked: DataRequest) -> DataSource:
    """The sequences of a text.

    Raises:
        ConfigError: the model has no tokenizer.
        DataError: the file can't be read, or is too short.
    """
    tokenize, length = tokenizer_of(home_of(file, asked.model)), asked.reading.length
    return read_text(Path(file), tokenize, validation=asked.validation, length=length)


def home_of(file: str, model: str | None) -> str:
    """Where the tokenizer is: with an `hf:` model, or in an artifact that was made of one. Raises ConfigError."""
    if model is not None and model.startswith("hf:"):
        return model.removeprefix("hf:")
    held = None if model is None else Path(model) / TOKENIZER
    if held is not None and held.is_dir():
        return str(held)
    what = "texts need a tokenizer, and only hf: models bring one"
    if held is not None and held.parent.is_dir():
        what = f"texts need a tokenizer, and {held.parent} has no folder {TOKENIZER}/"
    fix = "use a model hf:NAME_OR_DIR or an artifact that `prunus compress hf:... --data text:FILE` wrote, or give "
    raise ConfigError(f"data 'text:{file}'", what, fix + "FILE.py:callable that returns a DataSource of tokens")
