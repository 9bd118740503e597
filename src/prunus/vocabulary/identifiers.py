"""Ids of tokens in the configurations of a transformers model: which must stay, and what they are afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from prunus.errors import ConfigError

ONE_OR_MORE = re.compile(r"(_token_ids?|_token_index|_to_id)$")
LISTS = ("suppress_tokens", "begin_suppress_tokens")
SEQUENCES = ("bad_words_ids", "force_words_ids")
NOT_TOKENS = ("type_vocab_size",)
UNREAD = ("sequence_bias", "forced_decoder_ids", "constraints")
"""Settings of `generate` that hold ids in forms of their own; they are old, or are objects."""


def configurations(model: Any) -> list[Any]:
    """The model's configuration and those inside it, each once, and what `generate` is set to."""
    found: list[Any] = []

    def visit(config: Any) -> None:
        if not any(config is one for one in found):
            found.append(config)
            for value in vars(config).values():
                if hasattr(value, "to_dict") and hasattr(value, "__dict__"):
                    visit(value)

    visit(model.config)
    if getattr(model, "generation_config", None) is not None:
        visit(model.generation_config)
    return found


def check_vocabularies(model: Any, rows: int) -> None:
    """Raise ConfigError if a configuration has a vocabulary of another size, or ids in a form that isn't read."""
    name = type(model).__name__
    for config in configurations(model):
        for key, value in vars(config).items():
            of_tokens = "vocab" in key and key not in NOT_TOKENS and type(value) is int
            if of_tokens and value != rows:
                what = f"{key}={value} of its {type(config).__name__} is a second vocabulary beside one of {rows} rows"
                raise ConfigError(name, what, "only models with one vocabulary can be trimmed")
            if key in UNREAD and value:
                fix = "set it to None, and give it to generate() with the new ids"
                raise ConfigError(name, f"{key} of its {type(config).__name__} holds ids of tokens", fix)


def named(model: Any, rows: int) -> set[int]:
    """Ids that the configurations name, which therefore stay."""
    return {i for c in configurations(model) for i in _ids(vars(c)) if 0 <= i < rows}


def _ids(settings: Mapping[str, Any]) -> Iterator[int]:
    for key, value in settings.items():
        if ONE_OR_MORE.search(key):
            yield from _numbers(value)
        elif isinstance(value, dict):
            yield from _ids({k: v for k, v in value.items() if isinstance(k, str)})


def _numbers(value: Any) -> Iterator[int]:
    if type(value) is int:
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _numbers(one)


def renumber_(model: Any, numbers: Mapping[int, int], rows: int) -> None:
    """Let the configurations say the new ids and the new number of rows; ids outside the vocabulary stay (-1)."""
    for config in configurations(model):
        for key, value in list(vars(config).items()):
            new = _renumbered(key, value, numbers, rows)
            if new is not value:
                vars(config)[key] = new


def _renumbered(key: str, value: Any, numbers: Mapping[int, int], rows: int) -> Any:
    if "vocab" in key and key not in NOT_TOKENS and type(value) is int:
        return len(numbers)
    if ONE_OR_MORE.search(key):
        return _moved(value, numbers, rows)
    if key in LISTS and value is not None:
        return [numbers[i] for i in value if i in numbers]
    if key in SEQUENCES and value is not None:
        return [_moved(words, numbers, rows) for words in value if all(i in numbers for i in _numbers(words))] or None
    if isinstance(value, dict):
        return {k: _renumbered(k, v, numbers, rows) if isinstance(k, str) else v for k, v in value.items()}
    return value


def _moved(value: Any, numbers: Mapping[int, int], rows: int) -> Any:
    if type(value) is int:
        return numbers[value] if 0 <= value < rows else value
    if isinstance(value, list | tuple):
        return type(value)(_moved(one, numbers, rows) for one in value)
    if isinstance(value, dict):
        return {k: _moved(v, numbers, rows) for k, v in value.items()}
    return value
